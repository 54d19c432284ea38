"""Pairs of rewards in worlds that are finite sums, and what guidance by both draws: the laws of several adapters.

A pair is two 0/1 rewards on the same pictures, p_old is the mixture's prior. Every law of the two is a weight per
picture, so it has its exact counterpart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from helpers.mixture import Mixture, followed, spread_noise
from nft_pipeline.guidance import combine_all, combined_scales, law_scale, product_scales


@dataclass(frozen=True)
class Pair:
    """Pictures with two 0/1 rewards, (N,) each."""

    world: Mixture
    first: Tensor
    second: Tensor

    @property
    def together(self) -> Tensor:
        """The reward r_1 r_2 of a joint adapter, (N,)."""
        return self.first * self.second

    def moments(self, x: Tensor, t: float, *rewards: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """v_old, and v_plus and alpha for each of the rewards."""
        each = [replace(self.world, rewards=r).moments(x, t) for r in rewards]
        # Where no liked picture is possible v_plus is 0 / 0, and its scale 0.
        return each[0][0], [torch.nan_to_num(v_plus) for _, v_plus, _ in each], [alpha for _, _, alpha in each]

    def product(self, tilts: tuple[float, float]) -> Tensor:
        """p_old (1 + rho_1 r_1)(1 + rho_2 r_2), (N,)."""
        rho_1, rho_2 = map(math.expm1, tilts)
        return self.world.weighted((1 + rho_1 * self.first) * (1 + rho_2 * self.second)).prior

    def any(self, tilts: tuple[float, float]) -> Tensor:
        """p_old (1 + rho_1 r_1 + rho_2 r_2), (N,)."""
        rho_1, rho_2 = map(math.expm1, tilts)
        return self.world.weighted(1 + rho_1 * self.first + rho_2 * self.second).prior

    def joint(self, tilt: float) -> Tensor:
        """p_old (1 + rho r_1 r_2), (N,)."""
        return self.world.weighted(1 + math.expm1(tilt) * self.together).prior

    def both(self, share: Tensor) -> float:
        """The share of pictures that both rewards like."""
        return float(share @ self.together)

    def either(self, share: Tensor) -> float:
        """The share of pictures that at least one reward likes."""
        return float(share @ torch.maximum(self.first, self.second))


def pairs() -> dict[str, Pair]:
    """Five pairs in five dimensions, from independent given x_t to opposed."""
    world = _scattered()
    across = world.points[:, 0]
    generator = torch.Generator().manual_seed(9)
    coins = [(torch.rand(40, generator=generator, dtype=torch.float64) < share).double() for share in (0.5, 0.4)]
    return {
        "independent coordinates": _blocks(),
        "overlapping": Pair(world, (across > 0.2).double(), (world.points[:, 1] > 0.2).double()),
        "independent in the mean only": Pair(world, *coins),
        "nearly the same": Pair(world, (across > 0.2).double(), (across > -0.1).double()),
        "opposed": Pair(world, (across > 0.3).double(), (across < 0.1).double()),
    }


def _scattered() -> Mixture:
    """40 pictures in no order, of unequal frequency."""
    generator = torch.Generator().manual_seed(4)
    points = 1.3 * torch.randn(40, 5, generator=generator, dtype=torch.float64)
    torch.rand(40, generator=generator, dtype=torch.float64)
    prior = 0.2 + torch.rand(40, generator=generator, dtype=torch.float64)
    return Mixture(points, prior / prior.sum(), torch.ones(40, dtype=torch.float64))


def _blocks() -> Pair:
    """Two coordinates and three that know nothing of each other, with one reward on each block."""
    generator = torch.Generator().manual_seed(8)
    one = 1.5 * torch.randn(7, 2, generator=generator, dtype=torch.float64)
    two = 1.5 * torch.randn(8, 3, generator=generator, dtype=torch.float64)
    of_one, of_two = (0.3 + torch.rand(count, generator=generator, dtype=torch.float64) for count in (7, 8))
    points = torch.cat([one.repeat_interleave(8, 0), two.repeat(7, 1)], 1)
    prior = of_one.repeat_interleave(8) * of_two.repeat(7)
    first = (torch.arange(7) % 3 == 0).double().repeat_interleave(8)
    second = (torch.arange(8) % 3 == 0).double().repeat(7)
    return Pair(Mixture(points, prior / prior.sum(), torch.ones(56, dtype=torch.float64)), first, second)


def sums(law: str, combine: str = "all") -> Callable[[Pair, tuple[float, float], Tensor, float], Tensor]:
    """The velocity of two adapters under a law, combined as `nft_combine` says."""

    def velocity(pair: Pair, tilts: tuple[float, float], x: Tensor, t: float) -> Tensor:
        v_old, v_pluses, alphas = pair.moments(x, t, pair.first, pair.second)
        scales = [law_scale(alpha, tilt, law) for alpha, tilt in zip(alphas, tilts, strict=True)]
        return combine_all(v_old, v_pluses, combined_scales(scales, combine))

    return velocity


def with_the_joint(pair: Pair, tilts: tuple[float, float], x: Tensor, t: float) -> Tensor:
    """The velocity of the exact product, from two adapters and the joint one."""
    v_old, v_pluses, (alpha_1, alpha_2, alpha_12) = pair.moments(x, t, pair.first, pair.second, pair.together)
    return combine_all(v_old, v_pluses, product_scales((alpha_1, alpha_2), alpha_12, tilts))


def joint_alone(pair: Pair, tilts: tuple[float, float], x: Tensor, t: float) -> Tensor:
    """The velocity of the joint adapter alone at the first tilt, under the odds law."""
    v_old, v_pluses, (alpha_12,) = pair.moments(x, t, pair.together)
    return combine_all(v_old, v_pluses, [law_scale(alpha_12, tilts[0], "odds")])


def drawn(
    pair: Pair,
    velocity: Callable[[Pair, tuple[float, float], Tensor, float], Tensor],
    tilts: tuple[float, float],
    *,
    count: int = 2048,
    steps: int = 40,
    seed: int = 0,
) -> Tensor:
    """The share of samples that lands on each picture when the guided ODE is followed, (N,)."""
    noise = spread_noise(count, seed, dimensions=5)
    return followed(pair.world, lambda state, t: velocity(pair, tilts, state, t), noise, steps)
