"""From a weight to the scale of each sample: the odds law, written by its scale at an average state.

    logit alpha' = a (logit alpha + offset(t)) + (1 - a) logit p
    s = w alpha' / (p (1 - w) + w alpha')         for w below 1
    s = w                                         from 1 on

At alpha' = p this is s = w, so w is the LoRA weight of an average state. With w = rho p / (1 + rho p) and
rho = e^tilt - 1, a = 1 and no offsets it is the odds law (M10). With a = 0 it is s = w for all samples and steps, which
in one pass is plain LoRA weight (M13). A calibration finds the w that a tilt needs. Torch only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .measured import Dial, TiltMap

BARELY = 1e-6  # a tilt, or a weight, that changes no picture and still lets the head read alpha
SMALLEST = 1e-4  # alpha' is kept this far from 0 and 1


def gated(alpha: Tensor, rate: float, slope: float, offset: Tensor | float = 0.0) -> Tensor:
    """alpha shrunk towards the base rate on the logit scale: `a (logit alpha + offset) + (1 - a) logit p` (M13).

    Args:
        alpha: probabilities, any shape.
        rate: p, the base rate, in (0, 1).
        slope: a in [0, 1]; 1 leaves alpha, 0 gives p everywhere (the offset then counts for nothing).
        offset: added to alpha's logit, a number or a Tensor that broadcasts.

    Returns:
        alpha' in (0, 1), the same shape, float32 or wider.
    """
    if slope == 0:
        return torch.full_like(alpha, rate)
    logit = torch.logit(alpha.clamp(SMALLEST, 1 - SMALLEST))
    moved = slope * (logit + offset) + (1 - slope) * math.log(rate / (1 - rate))
    return torch.sigmoid(moved).clamp(SMALLEST, 1 - SMALLEST)


def weight_scale(alpha: Tensor, weight: Tensor | float, rate: float) -> Tensor:
    """The scale s of a sample whose gated alpha is alpha', from a weight w: the formula at the head of this module.

    Args:
        alpha: alpha' in (0, 1), shape (B,).
        weight: w, a number or (B,); 0 gives 0. At w = -p / (1 - p) the law leads to the disliked pictures alone; a
            weight below that only has a meaning where alpha' is p.
        rate: p in (0, 1).

    Returns:
        s, shape (B,).
    """
    w = torch.as_tensor(weight, dtype=alpha.dtype, device=alpha.device)
    below = rate + w * (alpha - rate)  # p (1 - w) + w alpha', written so that it is p where alpha' is p
    gate = w * alpha / torch.where(w < 0, below.clamp(min=0.05 * rate), below)
    return torch.where(w < 1, gate, w.expand_as(gate))


def weight_of(tilt_map: TiltMap, tilt: Tensor) -> Tensor:
    """The weight that a map gives tilts of any shape: straight between its tilts, constant beyond the outermost."""
    return _between(tilt, tilt_map.tilts, tilt_map.weights)


def offset_of(dial: Dial, noise_level: Tensor) -> Tensor | float:
    """What is added to alpha's logit at noise levels of shape (B,): straight between the dial's points."""
    if not dial.offsets:
        return 0.0
    levels, offsets = zip(*dial.offsets, strict=True)
    return _between(noise_level, levels, offsets)


def mended(dial: Dial, alpha: Tensor, noise_level: Tensor) -> Tensor:
    """alpha with the dial's slope and offsets: the best estimate that there is, shape (B,)."""
    return gated(alpha, dial.rate, dial.slope, offset_of(dial, noise_level))


def calibrated_scale(dial: Dial, tilt_map: TiltMap, alpha: Tensor | None, tilt: Tensor, noise_level: Tensor) -> Tensor:
    """s of each sample under a dial's map, shape (B,).

    Args:
        dial: has the base rate and the offsets.
        tilt_map: one of its maps.
        alpha: as the head read it, (B,); None for an adapter without a head, which is weighed alike everywhere.
        tilt: lambda of each sample, (B,).
        noise_level: t, (B,).
    """
    weight = weight_of(tilt_map, tilt.to(noise_level))
    if alpha is None or tilt_map.slope == 0:
        return weight
    trusted = gated(alpha, dial.rate, tilt_map.slope, offset_of(dial, noise_level))
    return weight_scale(trusted, weight.to(trusted), dial.rate)


def _between(at: Tensor, xs: Sequence[float], ys: Sequence[float]) -> Tensor:
    """Straight lines through the points (x, y), constant beyond the outermost, without a look at the values."""
    if len(xs) == 1:
        return torch.full_like(at, ys[0])
    x, y = at.new_tensor(xs), at.new_tensor(ys)
    right = torch.bucketize(at.contiguous(), x).clamp(1, len(xs) - 1)
    share = ((at - x[right - 1]) / (x[right] - x[right - 1])).clamp(0, 1)
    return y[right - 1] + share * (y[right] - y[right - 1])
