"""Is this the base model? Fingerprints, the named error, and every LoRA layer matched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from helpers.adapters import random_lora, tiny_adapter, tiny_sd3
from nft_pipeline.adapter import AdapterError, check_base, check_lora_modules, fingerprint


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_sd3()


def test_the_fingerprint_is_of_names_and_shapes(model: nn.Module) -> None:
    assert fingerprint(model) == fingerprint(tiny_sd3(seed=5)) == fingerprint(copy.deepcopy(model).half())
    assert fingerprint(model) != fingerprint(tiny_sd3(layers=3))
    toy = nn.Linear(2, 3)
    assert fingerprint(toy) == "sha256:d7e70ea01a9da436"  # written on adapters: must never change
    assert fingerprint(nn.Linear(3, 2)) != fingerprint(toy)


def test_the_fingerprint_is_blind_to_injected_loras_and_compile(model: nn.Module) -> None:
    from peft import LoraConfig

    before = fingerprint(model)
    injected = copy.deepcopy(model)
    injected.add_adapter(LoraConfig(r=2, target_modules=["to_q", "proj"], use_dora=True), "one")
    assert fingerprint(injected) == before
    assert fingerprint(torch.compile(injected, backend="eager")) == before


def test_buffers_that_are_not_saved_do_not_count() -> None:
    toy = nn.Linear(2, 3)
    before = fingerprint(toy)
    toy.register_buffer("cache", torch.ones(7), persistent=False)
    assert fingerprint(toy) == before
    toy.register_buffer("saved", torch.ones(7))
    assert fingerprint(toy) != before


def test_the_right_base_passes(model: nn.Module) -> None:
    made = tiny_adapter(model)
    check_base(made.config, model)
    check_base(made.config, torch.compile(tiny_sd3(seed=9), backend="eager"), made.lora)
    assert check_lora_modules(made.lora, model) == len(made.lora) // 2 > 10


def test_the_wrong_base_is_named_with_what_to_do(model: nn.Module) -> None:
    made = tiny_adapter(model, base_model={"id": "someone/sd3", "revision": "v2", "fingerprint": fingerprint(model)})
    other = tiny_sd3(layers=3)
    other.config._name_or_path = "someone/other"
    with pytest.raises(AdapterError) as caught:
        check_base(made.config, other, made.lora)
    text = str(caught.value)
    for phrase in (
        'the adapter "tiny-red" was made for another base model',
        f"the adapter needs someone/sd3 at v2: SD3Transformer2DModel, {fingerprint(model)}",
        f"the loaded model is someone/other SD3Transformer2DModel, {fingerprint(other)}",
        f"0 of {len(made.lora) // 2} LoRA layers match",
        "Load someone/sd3 at v2, or a fine-tune of it",
    ):
        assert phrase in text


def test_another_class_is_another_base_even_without_the_lora(model: nn.Module) -> None:
    made = tiny_adapter(model)
    with pytest.raises(AdapterError) as caught:
        check_base(made.config, nn.Linear(2, 3))
    assert "the loaded model is Linear" in str(caught.value) and "layers match" not in str(caught.value)

    class Renamed(type(model)):  # type: ignore[misc]
        """The same tensors under another class: other code may run over them."""

    renamed = copy.deepcopy(model)
    renamed.__class__ = Renamed
    with pytest.raises(AdapterError, match="the loaded model is Renamed") as caught:
        check_base(made.config, renamed, made.lora)
    count = len(made.lora) // 2
    assert f"{count} of {count} LoRA layers match" in str(caught.value)


def test_every_lora_layer_must_match(model: nn.Module) -> None:
    lora = random_lora(model)
    count = len(lora) // 2
    name = "transformer.transformer_blocks.1.attn.to_q"
    lora[f"{name}.lora_A.weight"] = torch.ones(4, 48)
    lora["transformer.pos_embed.proj.lora_A.weight"] = torch.ones(4, 16, 3, 3)
    for side in "AB":
        lora[f"transformer.nowhere.to_q.lora_{side}.weight"] = torch.ones(4, 4)
        lora[f"transformer.norm_out.norm.lora_{side}.weight"] = torch.ones(4, 4)
    lora["transformer.proj_out.lora_A.weight"] = torch.ones(4, 32)
    with pytest.raises(AdapterError) as caught:
        check_lora_modules(lora, model)
    for phrase in (
        f"{count - 2} of {count + 3} LoRA layers match the loaded SD3Transformer2DModel",
        "transformer_blocks.1.attn.to_q: A (4, 48) and B (32, 4) do not fit, expected A (rank, 32) and B (32, rank)",
        "pos_embed.proj: A (4, 16, 3, 3) and B (32, 4, 1, 1) do not fit, expected A (rank, 16, 2, 2)",
        "nowhere.to_q: the model has no such module",
        "norm_out.norm: is a LayerNorm, expected a linear layer",
        'proj_out: not a complete A and B of "transformer"',
    ):
        assert phrase in str(caught.value)


def test_layers_already_wrapped_by_peft_match(model: nn.Module) -> None:
    from peft import LoraConfig

    lora = random_lora(model)
    wrapped = copy.deepcopy(model)
    wrapped.add_adapter(LoraConfig(r=2, target_modules=["to_q", "proj"]), "style")
    assert check_lora_modules(lora, wrapped) == len(lora) // 2


def test_an_empty_lora_or_another_component_matches_nothing(model: nn.Module) -> None:
    with pytest.raises(AdapterError, match="0 of 0 LoRA layers match"):
        check_lora_modules({}, model)
    lora = random_lora(model)
    with pytest.raises(AdapterError, match=f"0 of {len(lora) // 2} LoRA layers match"):
        check_lora_modules(lora, model, component="transformer_2")
