"""What the maths asks of its arguments: tensors of one shape, one value per sample, numbers within their range.

Every check raises ValueError with the value and what was expected.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def work_dtype(*tensors: Tensor) -> torch.dtype:
    """The widest dtype among the tensors, float32 at least."""
    work = torch.float32
    for tensor in tensors:
        work = torch.promote_types(work, tensor.dtype)
    return work


def per_sample(name: str, value: float | Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A number, () or (B,) as a Tensor that broadcasts over (B, ...)."""
    tensor = torch.as_tensor(value, dtype=dtype, device=like.device)
    if tensor.ndim == 0:
        return tensor
    if tensor.ndim != 1 or like.ndim == 0 or tensor.shape[0] != like.shape[0]:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} for a batch of shape {tuple(like.shape)}. Expected a number, "
            f"shape () or ({like.shape[0] if like.ndim else 1},): one value per sample."
        )
    return tensor.reshape(-1, *[1] * (like.ndim - 1))


def unit_per_sample(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    """As `per_sample` in the dtype of `like`, and within [0, 1]."""
    tensor = per_sample(name, value, like, like.dtype)
    in_unit(name, tensor, "it is a probability or a noise level; map other scales first")
    return tensor


def same_shape(**tensors: Tensor) -> None:
    """Refuse tensors whose shapes differ or that hold no floating-point numbers; the names are those of the error."""
    if len({tuple(tensor.shape) for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"shapes differ: {shapes}. All must be alike: pass the same batch through both branches.")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}, expected a floating dtype. Convert it with .float().")


def in_unit(name: str, value: Tensor, advice: str) -> None:
    """Refuse values outside [0, 1], up to rounding; `advice` ends the error."""
    slack = 1e-6  # a mean of probabilities, or 1000 / 1000 in float32, may miss the edge by rounding
    wrong = value[~((value >= -slack) & (value <= 1 + slack))]  # NaN fails both comparisons
    if wrong.numel():
        raise ValueError(f"{name} must lie in [0, 1], got {float(wrong.flatten()[0]):g}: {advice}.")


def finite(name: str, value: float, meaning: str) -> float:
    """The number, refused unless it is finite; `meaning` says what the number is."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value} ({meaning}).")
    return float(value)


def positive(name: str, value: float, meaning: str) -> float:
    """The number, refused unless it is finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value} ({meaning}).")
    return float(value)
