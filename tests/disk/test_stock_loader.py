"""The stock diffusers loader gives the same change of every layer from our file: B @ A, ratio 1.000."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from helpers.adapters import random_lora, tiny_adapter, tiny_sd3
from nft_pipeline.adapter import Adapter, write_adapter
from nft_pipeline.adapters.keys import lora_from_peft, lora_modules


def stock_pipe(transformer: nn.Module) -> object:
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    rest = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3", "vae")
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), **dict.fromkeys(rest)
    )


def assert_deltas(transformer: nn.Module, expected: dict[str, torch.Tensor], adapter: str) -> None:
    """Every layer's change, and no other layer changed."""
    carrying = {name: m for name, m in transformer.named_modules() if adapter in getattr(m, "lora_A", {})}
    assert sorted(carrying) == sorted(expected)
    for name, layer in carrying.items():
        found = layer.get_delta_weight(adapter)
        ratio = (found * expected[name]).sum() / expected[name].square().sum()
        assert abs(ratio.item() - 1) < 5e-4, name
        torch.testing.assert_close(found, expected[name], msg=name)


def by_hand(made: Adapter) -> dict[str, torch.Tensor]:
    """B @ A of every layer, computed from the tensors alone."""
    deltas = {}
    for module in lora_modules(made.lora):
        a = made.lora[f"transformer.{module}.lora_A.weight"]
        b = made.lora[f"transformer.{module}.lora_B.weight"]
        deltas[module] = (b.flatten(1) @ a.flatten(1)).reshape(b.shape[0], *a.shape[1:])
    return deltas


@pytest.mark.parametrize("kind", ["positive", "policy"])
def test_load_lora_weights_from_the_folder(tmp_path: Path, kind: str) -> None:
    model = tiny_sd3()
    made = tiny_adapter(model, kind)
    write_adapter(tmp_path / "a", made)
    pipe = stock_pipe(model)
    pipe.load_lora_weights(str(tmp_path / "a"), adapter_name="red")  # type: ignore[attr-defined]
    config = model.peft_config["red"]
    assert (config.r, config.lora_alpha) == (4, 4)
    assert_deltas(model, by_hand(made), "red")


def test_a_trained_peft_lora_of_scale_two_keeps_its_strength(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model_state_dict

    trained, model = tiny_sd3(), tiny_sd3()
    trained.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_v"], init_lora_weights=False), "nft")
    deltas = {n: m.get_delta_weight("nft") for n, m in trained.named_modules() if hasattr(m, "get_delta_weight")}
    lora = lora_from_peft(get_peft_model_state_dict(trained, adapter_name="nft"), alpha=8, rank=4)
    write_adapter(tmp_path / "a", Adapter(tiny_adapter(model, "policy").config, lora))
    stock_pipe(model).load_lora_weights(str(tmp_path / "a"), adapter_name="nft")  # type: ignore[attr-defined]
    assert_deltas(model, deltas, "nft")


def test_names_that_end_alike_are_not_mixed_up(tmp_path: Path) -> None:
    """A LoRA on the outermost proj_out alone must not spread to other modules of that last name."""
    model = tiny_sd3()
    lora = {
        key.replace("transformer_blocks.0.attn.to_q", "proj_out"): tensor
        for key, tensor in random_lora(model).items()
        if "transformer_blocks.0.attn.to_q" in key
    }
    lora["transformer.proj_out.lora_B.weight"] = torch.randn(model.proj_out.out_features, 4)
    lora["transformer.context_embedder.lora_A.weight"] = torch.randn(4, 24)
    lora["transformer.context_embedder.lora_B.weight"] = torch.randn(32, 4)
    made = Adapter(tiny_adapter(model, "policy").config, lora)
    write_adapter(tmp_path / "a", made)
    stock_pipe(model).load_lora_weights(str(tmp_path / "a"), adapter_name="red")  # type: ignore[attr-defined]
    assert_deltas(model, by_hand(made), "red")


def test_the_single_files_lora_is_as_strong(tmp_path: Path) -> None:
    """ComfyUI computes (alpha / rank) B @ A from these names: that is B @ A in every layer."""
    from safetensors.torch import load_file

    model = tiny_sd3()
    made = tiny_adapter(model)
    write_adapter(tmp_path / "a", made)
    tensors = load_file(tmp_path / "a" / "comfyui" / "tiny-red.safetensors")
    expected = by_hand(made)
    for module, delta in expected.items():
        a, b = (tensors[f"transformer.{module}.lora_{side}.weight"] for side in "AB")
        scale = tensors[f"transformer.{module}.alpha"] / a.shape[0]
        torch.testing.assert_close(scale * (b.flatten(1) @ a.flatten(1)), delta.flatten(1))
