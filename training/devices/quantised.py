"""Saves memory: the frozen base in 4 bits (bitsandbytes' nf4) or 8 (torchao's int8), the optimiser's state in 8.

The quantised model is the run's v_old: its samples fill the pool, and the LoRA is trained beside it, in fp32 as the
head is. On the full base model the adapter meets a slightly other v_old.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..errors import TrainingError


def _missing(setting: str, package: str, error: ImportError) -> TrainingError:
    return TrainingError(
        f"{setting} needs {package}, which cannot be imported ({error}). Install it with "
        "pip install 'diffusion-nft[quantise]', or leave the setting out"
    )


def _bitsandbytes(setting: str) -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise _missing(setting, "bitsandbytes", error) from error
    return bitsandbytes


@torch.no_grad()
def quantise(denoiser: nn.Module, how: str, dtype: torch.dtype, device: torch.device) -> int:
    """Quantise the weights of a denoiser's linear layers, one after another on `device`; then they go back home.

    Layers the model itself keeps in fp32, convolutions and norms stay as they are.

    Args:
        denoiser: without LoRAs.
        how: "nf4", 4 bits in blocks of 64, or "int8", 8 bits with a scale for every output.
        device: of the run; it needs room for one layer.
        dtype: that nf4 layers compute in; int8 ones compute in what they are given.

    Returns:
        How many layers have quantised weights now.

    Raises:
        TrainingError: the package for it is not installed.
    """
    kept = tuple(getattr(denoiser, "_keep_in_fp32_modules", None) or ())
    layers = {
        name: layer
        for name, layer in denoiser.named_modules()
        if type(layer) is nn.Linear and not any(part in kept for part in name.split("."))
    }
    if how == "nf4":
        _to_nf4(denoiser, layers, dtype, device)
    else:
        _to_int8(denoiser, layers, device)
    return len(layers)


def _to_nf4(denoiser: nn.Module, layers: dict[str, nn.Linear], dtype: torch.dtype, device: torch.device) -> None:
    bnb = _bitsandbytes("quantise: nf4")
    for name, layer in layers.items():
        small = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=dtype, quant_type="nf4"
        )
        small.weight = bnb.nn.Params4bit(layer.weight.detach(), requires_grad=False, quant_type="nf4")
        small.bias = layer.bias
        # On CPUs with bf16 units bitsandbytes would repack the weights for a kernel of its own, which takes only some
        # sizes of layers and computes in bf16 whatever it was asked for.
        small.support_avx512bf16_for_cpu = False
        parent, _, own = name.rpartition(".")
        home = layer.weight.device
        setattr(denoiser.get_submodule(parent), own, small.to(device).to(home).train(layer.training))
    denoiser.is_loaded_in_4bit = True  # type: ignore[assignment]  # what peft asks before it wraps such a layer


def _to_int8(denoiser: nn.Module, layers: dict[str, nn.Linear], device: torch.device) -> None:
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise _missing("quantise: int8", "torchao", error) from error
    # peft says that a LoRA beside such weights cannot be merged into them, which nothing here does.
    warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated without")
    for layer in layers.values():
        home = layer.weight.device
        quantize_(layer, Int8WeightOnlyConfig(), device=device)
        layer.to(home)


def make_optimizer(
    name: str, groups: Iterable[dict[str, Any]], weight_decay: float, betas: tuple[float, float] = (0.9, 0.99)
) -> torch.optim.Optimizer:
    """AdamW, or AdamW whose state of matrices with 4096 numbers or more is kept in 8 bits ("adamw8bit").

    Raises:
        TrainingError: bitsandbytes is not installed.
    """
    settings: dict[str, Any] = {"weight_decay": weight_decay, "betas": betas}
    if name == "adamw8bit":
        return _bitsandbytes("optimizer: adamw8bit").optim.AdamW8bit(groups, **settings)
    return torch.optim.AdamW(groups, **settings)
