"""Less memory by bitsandbytes: the frozen base in 4 bits (nf4), the optimiser's state in 8. LoRA and head stay in fp32.

The quantised model is the run's v_old: its samples fill the pool, and the LoRA is trained beside it. On the full base
model the adapter meets a slightly other v_old.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .base_model import TrainingError

QUANTISE = ("none", "nf4")
OPTIMIZERS = ("adamw", "adamw8bit")


def _bitsandbytes(setting: str) -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise TrainingError(
            f"{setting} needs bitsandbytes, which cannot be imported ({error}). Install it with "
            "pip install 'diffusion-nft[quantise]', or leave the setting out"
        ) from error
    return bitsandbytes


@torch.no_grad()
def quantise(denoiser: nn.Module, dtype: torch.dtype) -> int:
    """Put nf4 weights in the place of a denoiser's linear layers' own, on the device they are on.

    Layers the model itself keeps in fp32, convolutions and norms stay as they are.

    Args:
        denoiser: without LoRAs.
        dtype: that the layers compute in.

    Returns:
        How many layers have 4-bit weights now.

    Raises:
        TrainingError: bitsandbytes is not installed.
    """
    bnb = _bitsandbytes("quantise: nf4")
    kept = tuple(getattr(denoiser, "_keep_in_fp32_modules", None) or ())
    layers = [
        (name, layer)
        for name, layer in denoiser.named_modules()
        if type(layer) is nn.Linear and not any(part in kept for part in name.split("."))
    ]
    for name, layer in layers:
        small = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=dtype, quant_type="nf4"
        )
        small.weight = bnb.nn.Params4bit(layer.weight.detach(), requires_grad=False, quant_type="nf4")
        small.bias = layer.bias
        # On CPUs with bf16 units bitsandbytes would repack the weights for a kernel of its own, which takes only some
        # sizes of layers and computes in bf16 whatever it was asked for.
        small.support_avx512bf16_for_cpu = False
        parent, _, own = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), own, small.to(layer.weight.device).train(layer.training))
    denoiser.is_loaded_in_4bit = True  # type: ignore[assignment]  # what peft asks before it wraps such a layer
    return len(layers)


def make_optimizer(name: str, groups: Iterable[dict[str, Any]], weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, or AdamW whose state of matrices with 4096 numbers or more is kept in 8 bits ("adamw8bit").

    Raises:
        TrainingError: bitsandbytes is not installed.
    """
    settings: dict[str, Any] = {"weight_decay": weight_decay, "betas": (0.9, 0.99)}
    if name == "adamw8bit":
        return _bitsandbytes("optimizer: adamw8bit").optim.AdamW8bit(groups, **settings)
    return torch.optim.AdamW(groups, **settings)
