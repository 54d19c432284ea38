"""Checkpoints as other tools leave them on disk, small and random, and the changes of layers by those tools' rules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers.zoo import CASES
from nft_pipeline.adapter import Adapter, read_adapter

Q = "transformer_blocks.0.attn.to_q"  # a layer of the tiny Stable Diffusion 3
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]


def lora_config(**changed: Any) -> LoraConfig:
    """As the official trainer has it, but small, and with a B that is not zero."""
    values: dict[str, Any] = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "target_modules": TARGETS}
    return LoraConfig(**values | changed)


def peft_model(denoiser: nn.Module, *, old: bool = False, seed: int = 11, **changed: Any) -> PeftModel:
    """The denoiser with an adapter "default" and, if asked for, one called "old", as in training."""
    torch.manual_seed(seed)
    model = get_peft_model(denoiser, lora_config(**changed))
    if old:
        model.add_adapter("old", lora_config(r=2, lora_alpha=6))
        model.set_adapter("default")
    with torch.no_grad():  # peft's random B is small: the change should be plain to see
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.4)
    return model.eval()


def official_checkpoint(folder: Path, model: PeftModel) -> Path:
    """What DiffusionNFT's and flow_grpo's trainers write: the model in lora/, optimiser state beside it."""
    root = folder / "checkpoints" / "checkpoint-300"
    (root / "lora").mkdir(parents=True)
    model.save_pretrained(str(root / "lora"))
    for name in ("optimizer.pt", "scaler.pt"):
        (root / name).write_bytes(b"PK\x03\x04 not to be opened")
    return root


def peft_changes(model: PeftModel, adapter: str = "default") -> dict[str, Tensor]:
    """What peft adds to each weight."""
    layers: dict[str, Any] = {n: m for n, m in model.base_model.model.named_modules() if hasattr(m, "lora_A")}
    return {name: layer.get_delta_weight(adapter).detach() for name, layer in layers.items() if adapter in layer.lora_A}


def changes(lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """B @ A of each layer of an adapter, by module; a convolution's in its own shape."""
    found = {}
    for key, a in lora.items():
        if key.endswith(".lora_A.weight"):
            b = lora[key.replace("lora_A", "lora_B")]
            product = b.flatten(1).double() @ a.flatten(1).double()
            found[key.partition(".")[2].removesuffix(".lora_A.weight")] = product.reshape(b.shape[0], *a.shape[1:])
    return found


def assert_same_changes(lora: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Same layers, same changes."""
    found = changes(lora)
    assert sorted(found) == sorted(expected)
    for name, change in expected.items():
        assert change.abs().max() > 1e-3, name
        torch.testing.assert_close(
            found[name], change.double(), atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def pair(weight: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random down and up for a layer's weight, linear or convolution."""
    down = torch.randn(rank, *weight.shape[1:], generator=generator)
    ones = (1,) * (weight.ndim - 2)
    return 0.3 * down, 0.3 * torch.randn(weight.shape[0], rank, *ones, generator=generator)


def change_of(down: Tensor, up: Tensor, alpha: float | None) -> Tensor:
    """kohya's rule: alpha / rank * up @ down; alpha is the rank where the file has none."""
    scale = 1.0 if alpha is None else alpha / down.shape[0]
    product = up.flatten(1).double() @ down.flatten(1).double()
    return scale * product.reshape(up.shape[0], *down.shape[1:])


def kohya_tensors(
    layers: Mapping[str, Tensor],
    *,
    prefix: str = "lora_unet_",
    names: tuple[str, str] = ("lora_down", "lora_up"),
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of a file for layers (name as the file spells it -> weight), and the change of each by kohya's rule.

    Ranks differ from layer to layer, and so do the alphas; every third layer has none. Weights on the meta device are
    sizes alone, and get no change.
    """
    generator = torch.Generator().manual_seed(5)
    tensors: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    for i, (name, weight) in enumerate(layers.items()):
        down, up = pair(weight, 2 + i % 3, generator)
        alpha = (1.0, 5.0, None)[i % 3]
        tensors[f"{prefix}{name}.{names[0]}.weight"], tensors[f"{prefix}{name}.{names[1]}.weight"] = down, up
        if alpha is not None:
            tensors[f"{prefix}{name}.alpha"] = torch.tensor(alpha)
        if not weight.is_meta:
            expected[name] = change_of(down, up, alpha)
    return tensors, expected


def weights_of(
    denoiser: nn.Module, endings: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
) -> dict[str, Tensor]:
    """Weights of the layers with these endings, by module."""
    return {
        name: module.weight.detach()
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and name.endswith(endings)
    }


def save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> Path:
    """A .safetensors file, with a LoraConfig in the header as diffusers writes it if given."""
    header = {"format": "pt"}
    if metadata is not None:
        header["lora_adapter_metadata"] = json.dumps(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path, header)
    return path


def add_to_weights(denoiser: nn.Module, expected: Mapping[str, Tensor]) -> None:
    """W <- W + change: what every one of these tools means in the end."""
    with torch.no_grad():
        for name, change in expected.items():
            denoiser.get_submodule(name).weight += change.float()  # type: ignore[operator]


def read_for(pipe: Any, path: Path, **kwargs: Any) -> Adapter:
    """`read_adapter` as a policy adapter for this pipeline."""
    return read_adapter(path, **{"kind": "policy", "beta": 1.0, "pipe": pipe, **kwargs})


def edit(folder: Path, **changed: Any) -> None:
    """Change fields of adapter_config.json."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def plain(names: tuple[str, ...] = (Q,)) -> dict[str, Tensor]:
    """A LoRA file's tensors for a few layers of the tiny Stable Diffusion 3."""
    denoiser = CASES["StableDiffusion3Pipeline"].pipe().transformer
    tensors, _ = kohya_tensors({name: denoiser.get_submodule(name).weight for name in names}, prefix="transformer.")
    return tensors
