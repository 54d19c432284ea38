"""The `positive` objective: what the LoRA and the alpha head learn from scored pictures. Torch only, no model inside.

    LoRA:  E[ r |v_plus(x_t) - y|^2 ] / E[r]     minimised by  v_plus = E[r y | x_t] / E[r | x_t]    (DESIGN M2)
    head:  BCE(alpha(x_t), r)                    minimised by  alpha  = E[r | x_t]                   (DESIGN M1)

with x_t = (1 - t) x_0 + t eps and y = eps - x_0. Drawing pictures in proportion to r and weighing them all the same
has the same expectation as drawing evenly and weighing by r, with less noise and no forward spent on weight zero; the
trainer does that.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def noise_levels(n: int, shift: float, generator: torch.Generator) -> Tensor:
    """`n` noise levels t in (0, 1), stratified, then shifted: t = shift u / (1 + (shift - 1) u).

    shift 1 is even; above 1 more of them are near t = 1, where compositions are decided. Shape (n,), in random order.
    """
    u = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n
    return shift * u / (1 + (shift - 1) * u)


def interpolate(x_0: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and its velocity target y, for x_0 and eps (B, ...) and t (B,)."""
    t = t.view(-1, *[1] * (x_0.ndim - 1))
    return (1 - t) * x_0 + t * eps, eps - x_0


def flow_matching_loss(v: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over the batch of weight |v - y|^2 (mean over dimensions), a scalar in fp32; weight is (B,) or all ones."""
    error = (v.float() - y.float()).square().flatten(1).mean(1)
    return error.mean() if weight is None else (weight * error).mean()


def alpha_loss(logit: Tensor, r: Tensor) -> Tensor:
    """Binary cross entropy of the head's logit (B,) against r (B,) in [0, 1], graded rewards included."""
    return F.binary_cross_entropy_with_logits(logit.float(), r.float())
