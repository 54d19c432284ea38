"""From picture to noisy state and back, for models of every prediction type. Torch only, no model inside.

    x_t = (1 - t) x_0 + t eps,   y = eps - x_0

A network may predict y itself, the noise, the picture or VP velocity. At one (x_t, t) each of them is an affine map of
any other, so a regression may be done on the raw output (docs/theory.md, M9); a loss that is written in x_0 or in y
converts the output first, exactly:

    prediction    what the network is asked for                   y from it, n = sqrt((1 - t)^2 + t^2)
    flow          eps - x_0                                       y
    epsilon       eps                                             (eps - x_t) / (1 - t)
    v             ((1 - t) eps - t x_0) / n                       ((2t - 1) x_t + n v) / n^2
    sample        x_0                                             (x_t - x_0) / t

Noise and VP velocity models see the variance-preserving state x_t / n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nft_pipeline.families.prediction import PREDICTIONS


class NoiseLaw:
    """How noise levels t in (0, 1) are drawn, from a stratified u in (0, 1).

        t = shift u / (1 + (shift - 1) u)                    without a spread
        logit(t) = log(shift) + spread Phi^-1(u)             with one: the logit-normal law; Phi is the normal's

    Levels outside of a range are left out, and those inside keep their proportions.

    By default u is uniform. With `adaptive` its density is p(u) ~ sqrt(E |g|^2), where g is the gradient of a sample's
    loss by the network's output, as the steps so far have measured it. A sample then weighs 1 / p(u), so that the
    expected loss is the one of uniform u. Of all densities this one gives the loss's gradient the least variance, if
    the network passes on the gradients of all noise levels alike. A quarter of the density stays uniform, so that no
    sample weighs more than 4. All of it is uniform until every bin has had `WARM_UP` samples.

    Args:
        shift: 1 is uniform in t; above 1 more levels are near t = 1, where compositions are decided.
        adaptive: whether p is learned.
        spread: the standard deviation of logit(t), above 0; None is the first law.
        within: the lowest and the highest t, in [0, 1].
    """

    BINS, WARM_UP, EVEN, MEMORY = 12, 8, 0.25, 0.98

    def __init__(
        self,
        shift: float,
        adaptive: bool = False,
        spread: float | None = None,
        within: Sequence[float] = (0.0, 1.0),
    ) -> None:
        self.shift, self.adaptive, self.spread = shift, adaptive, spread
        ends = self._below(torch.tensor([float(end) for end in within], dtype=torch.float64))
        self._low, self._width = float(ends[0]), float(ends[1] - ends[0])
        # Per bin of u: sum of |g|^2 and number of samples, both with older steps fading, and the samples in all.
        self.seen = torch.zeros(3, self.BINS, dtype=torch.float64)

    def density(self) -> Tensor:
        """p(u) for each bin, shape (BINS,), with mean 1."""
        if not self.adaptive or self.seen[2].min() < self.WARM_UP:
            return torch.ones(self.BINS, dtype=torch.float64)
        noise = (self.seen[0] / self.seen[1]).sqrt()
        return self.EVEN + (1 - self.EVEN) * noise / noise.mean() if noise.sum() > 0 else torch.ones_like(noise)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """`n` noise levels in random order, the weight of each sample, and its bin of u; each of shape (n,)."""
        u = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / n
        at, weight = (u * self.BINS).long().clamp(max=self.BINS - 1), torch.ones(n)
        if self.adaptive:
            p = self.density()
            ends = p.cumsum(0)  # the law's distribution function at the bins' upper ends, times BINS
            at = torch.searchsorted(ends, u.double() * self.BINS, right=True).clamp(max=self.BINS - 1)
            u = ((at + 1 - (ends[at] - u * self.BINS) / p[at]) / self.BINS).clamp(0, 1).float()
            weight = (1 / p[at]).float()
        return self._level(self._low + self._width * u), weight, at

    def _level(self, u: Tensor) -> Tensor:
        """t below which the share u of the law is."""
        if self.spread is None:
            return self.shift * u / (1 + (self.shift - 1) * u)
        return torch.sigmoid(math.log(self.shift) + self.spread * torch.special.ndtri(u))

    def _below(self, t: Tensor) -> Tensor:
        """The share of the law below t."""
        if self.spread is None:
            return t / (self.shift - (self.shift - 1) * t)
        return torch.special.ndtr((torch.logit(t) - math.log(self.shift)) / self.spread)

    def meet(self, met: Tensor) -> None:
        """Add a step's sums of |g|^2 and its numbers of samples per bin, shape (2, BINS)."""
        self.seen[:2] = self.MEMORY * self.seen[:2] + met
        self.seen[2] += met[1]


def interpolate(x_0: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and its velocity target y, for x_0 and eps (B, ...) and t (B,)."""
    t = per_sample(t, x_0)
    return (1 - t) * x_0 + t * eps, eps - x_0


def per_sample(t: Tensor, like: Tensor) -> Tensor:
    """t of shape (B,) as (B, 1, ...), so that it multiplies a tensor of the shape of `like`."""
    return t.to(like).view(-1, *[1] * (like.ndim - 1))


def vp_norm(t: Tensor) -> Tensor:
    """n = sqrt((1 - t)^2 + t^2): x_t / n is the variance-preserving state."""
    return torch.hypot(1 - t, t)


def raw_target(prediction: str, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What a network of this prediction type should output, of the shape of x_0, (B, ...); t is (B,).

    Raises:
        ValueError: an unknown prediction.
    """
    _check(prediction)
    if prediction == "flow":
        return eps - x_0
    if prediction == "epsilon":
        return eps
    if prediction == "sample":
        return x_0
    t = per_sample(t, x_0)
    return ((1 - t) * eps - t * x_0) / vp_norm(t)


def velocity(prediction: str, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The velocity y that a raw output stands for, at x_t (B, ...) and t (B,) inside (0, 1).

    Raises:
        ValueError: an unknown prediction.
    """
    _check(prediction)
    if prediction == "flow":
        return output
    t = per_sample(t, x_t)
    if prediction == "epsilon":
        return (output - x_t) / (1 - t)
    if prediction == "sample":
        return (x_t - output) / t
    n = vp_norm(t)
    return ((2 * t - 1) * x_t + n * output) / n**2


def velocity_gain(prediction: str, t: Tensor) -> Tensor:
    """How far the velocity moves when the raw output moves by 1, shape of t: the factor in the table above.

    Raises:
        ValueError: an unknown prediction.
    """
    _check(prediction)
    if prediction == "flow":
        return torch.ones_like(t)
    return {"epsilon": 1 / (1 - t), "sample": 1 / t, "v": 1 / vp_norm(t)}[prediction]


def _check(prediction: str) -> None:
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction is {prediction!r}, expected one of {', '.join(PREDICTIONS)}")
