"""Adapters trained on functions of one graded reward, in a world that is a finite sum, and what they draw together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from helpers.mixture import Mixture, followed, spread_noise
from nft_pipeline.dial.exponential import exponential_tilts
from nft_pipeline.guidance import combine_all, combined_scales, law_scale

tilts_of = functools.cache(exponential_tilts)
Velocity = Callable[[Mixture, float, Tensor, float], Tensor]


def trained_on(world: Mixture, exponent: float | None) -> Mixture:
    """The same pictures, rewarded as an adapter's run did: by r itself, or by e^{kappa (r - 1)}."""
    return world if exponent is None else replace(world, rewards=torch.exp(exponent * (world.rewards - 1)))


def together(exponents: tuple[float | None, ...]) -> Velocity:
    """The velocity of adapters with these exponents at the tilts that draw an exponential tilt."""

    def velocity(world: Mixture, tilt: float, x: Tensor, t: float) -> Tensor:
        moments = [trained_on(world, exponent).moments(x, t) for exponent in exponents]
        tilts, _ = tilts_of(exponents, tilt)
        scales = [law_scale(alpha, one, "odds") for (_, _, alpha), one in zip(moments, tilts, strict=True)]
        return combine_all(moments[0][0], [v_plus for _, v_plus, _ in moments], combined_scales(scales, "any"))

    return velocity


def by_law(law: str) -> Velocity:
    """The velocity of one adapter for r itself under a law."""

    def velocity(world: Mixture, tilt: float, x: Tensor, t: float) -> Tensor:
        v_old, v_plus, alpha = world.moments(x, t)
        return combine_all(v_old, [v_plus], [law_scale(alpha, tilt, law)])

    return velocity


def drawn(world: Mixture, velocity: Velocity, tilt: float, *, count: int = 2048, steps: int = 40) -> Tensor:
    """The share of samples that lands on each picture when the guided ODE is followed, (N,)."""
    return followed(world, lambda state, t: velocity(world, tilt, state, t), spread_noise(count), steps)
