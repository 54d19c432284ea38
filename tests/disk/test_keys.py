"""nft_pipeline.adapters.keys: names of LoRA tensors, and the scale baked into B."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from helpers.adapters import random_lora, tiny_sd3
from nft_pipeline.adapter import AdapterError
from nft_pipeline.adapters import keys


def peft_state(prefix: str = "", adapter: str = "", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        f"{prefix}blocks.0.to_q.lora_A{adapter}.weight": torch.randn(4, 8, dtype=dtype),
        f"{prefix}blocks.0.to_q.lora_B{adapter}.weight": torch.randn(6, 4, dtype=dtype),
    }


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
@pytest.mark.parametrize("adapter", ["", ".default", ".nft"])
def test_peft_names_become_diffusers_names_with_the_scale_in_b(prefix: str, adapter: str) -> None:
    state = peft_state(prefix, adapter)
    a, b = state.values()
    lora = keys.lora_from_peft(state, alpha=6, rank=4)
    assert list(lora) == ["transformer.blocks.0.to_q.lora_A.weight", "transformer.blocks.0.to_q.lora_B.weight"]
    baked_a, baked_b = lora.values()
    assert torch.equal(baked_a, a)
    torch.testing.assert_close(baked_b @ baked_a, (6 / 4) * (b @ a))


def test_baking_keeps_dtype_and_the_callers_tensors() -> None:
    state = peft_state(dtype=torch.bfloat16)
    before = {key: tensor.clone() for key, tensor in state.items()}
    lora = keys.lora_from_peft(state, alpha=8, rank=4, component="unet")
    assert torch.equal(lora["unet.blocks.0.to_q.lora_B.weight"], 2 * before["blocks.0.to_q.lora_B.weight"])
    lora["unet.blocks.0.to_q.lora_A.weight"].zero_()
    assert all(torch.equal(state[key], before[key]) for key in state)


def test_what_peft_itself_returns() -> None:
    from peft import LoraConfig, get_peft_model_state_dict

    model = tiny_sd3()
    model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "proj"], init_lora_weights=False), "nft")
    state = get_peft_model_state_dict(model, adapter_name="nft")
    lora = keys.lora_from_peft(state, alpha=8, rank=4)
    layer = model.transformer_blocks[1].attn.to_q
    name = "transformer.transformer_blocks.1.attn.to_q"
    delta = lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"]
    torch.testing.assert_close(delta, layer.get_delta_weight("nft"))
    assert lora["transformer.pos_embed.proj.lora_B.weight"].shape[2:] == (1, 1)


@pytest.mark.parametrize(
    ("changed", "alpha", "phrases"),
    [
        ({}, 0, ["lora_alpha is 0", "above zero"]),
        ({"x.lora_magnitude_vector": torch.ones(3)}, 4, ["x.lora_magnitude_vector: not a LoRA's A or B", "no DoRA"]),
        ({"x.lora_A.weight": torch.ones(2, 8)}, 4, ["x.lora_A.weight", "is of rank 2, expected 4"]),
        ({"x.lora_B.weight": torch.ones(2)}, 4, ["shape (2,)"]),
        ({"blocks.0.to_q.lora_A.old.weight": torch.ones(4, 8)}, 4, ["a second tensor for", "one adapter at a time"]),
    ],
)
def test_what_is_no_plain_lora_is_named(changed: dict[str, Tensor], alpha: float, phrases: list[str]) -> None:
    with pytest.raises(AdapterError) as caught:
        keys.lora_from_peft(peft_state() | changed, alpha=alpha, rank=4)
    for phrase in phrases:
        assert phrase in str(caught.value)


def test_nothing_to_convert_is_an_error() -> None:
    with pytest.raises(AdapterError, match="no LoRA layer was found"):
        keys.lora_from_peft({}, alpha=4, rank=4)


def test_comfyui_names_carry_an_alpha_equal_to_the_rank() -> None:
    lora = random_lora(tiny_sd3())
    named = keys.lora_to_comfyui(lora, rank=4)
    assert {key: named[key] for key in lora} == lora
    added = set(named) - set(lora)
    assert added == {f"transformer.{module}.alpha" for module in keys.lora_modules(lora)}
    assert all(named[key].shape == () and named[key].item() == 4 for key in added)


def test_head_keys_there_and_back() -> None:
    state = {"norm.weight": torch.ones(2), "rounds.0.to_q.bias": torch.zeros(3)}
    single = keys.head_to_comfyui(state) | {"transformer.x.lora_A.weight": torch.ones(1, 1)}
    assert all(key.startswith(("alpha_head.", "transformer.")) for key in single)
    back = keys.comfyui_to_head(single)
    assert list(back) == list(state) and all(back[key] is state[key] for key in state)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("blocks.0.to_q.weight", "blocks.0.to_q.weight"),
        ("blocks.0.to_q.base_layer.weight", "blocks.0.to_q.weight"),
        ("_orig_mod.blocks.0.to_q.base_layer.bias", "blocks.0.to_q.bias"),
        ("blocks.0.to_q.lora_A.nft.weight", None),
        ("blocks.0.to_q.lora_magnitude_vector.nft.weight", None),
    ],
)
def test_names_without_what_peft_injected(name: str, plain: str | None) -> None:
    assert keys.strip_injected(name) == plain


@pytest.mark.parametrize(
    "key", ["transformer.lora_A.weight", "transformer.x.lora_C.weight", "x..y.lora_A.weight", "", "a"]
)
def test_keys_of_another_form(key: str) -> None:
    assert keys.split_lora_key(key) is None


def test_a_unets_attention_has_the_names_comfyui_knows_and_comes_back() -> None:
    modules = ["down.0.attn1.to_q", "down.0.attn1.to_out.0", "down.0.ff.net.0.proj"]
    lora = {f"unet.{module}.lora_{side}.weight": torch.ones(2, 2) for module in modules for side in "AB"}
    named = keys.lora_to_comfyui(lora, rank=2)
    alphas = {key for key in named if key.endswith(".alpha")}
    assert alphas == {
        "unet.down.0.attn1.processor.to_q.alpha",
        "unet.down.0.attn1.processor.to_out.alpha",
        "unet.down.0.ff.net.0.proj.alpha",
    }
    back = keys.lora_from_comfyui(named)
    assert set(back) == set(lora) | {f"unet.{module}.alpha" for module in modules}
