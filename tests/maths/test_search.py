"""Early choice and SMC where everything is known: the closed-form mixture."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from helpers.mixture import Mixture, noise_levels, ring
from nft_pipeline.search.choice import best, draw_seeds, liking
from nft_pipeline.search.smc import Particles, effective, log_twist, renoised, systematic

LEVELS = noise_levels(28)
GROUPS, SIZE = 96, 16


def spoilt(alpha: Tensor) -> Tensor:
    """Far too low: its odds are less than half of what is right."""
    return torch.sigmoid(torch.logit(alpha.clamp(1e-12, 1 - 1e-12)) - 0.8)


def landed(
    world: Mixture, tilts: list[float], rewards: list[Tensor], *, bad: bool = False, smc: bool = True
) -> tuple[Tensor, Particles]:
    """Share of the particles that lands on each picture, (N,)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(GROUPS * SIZE, 2, generator=generator, dtype=torch.float64)
    particles = Particles(GROUPS, SIZE, generator)
    for t, after in itertools.pairwise(LEVELS):
        p = world.posterior(x, 1 - t, t)
        v = (x - p @ world.points) / t
        alphas = torch.stack([p @ reward for reward in rewards])
        if smc:
            index = particles.weigh(log_twist(spoilt(alphas) if bad else alphas, tilts))
            x, v = x[index], v[index]
        x = renoised(x, v, t, after, 0.6, torch.randn(x.shape, generator=generator, dtype=x.dtype))
    p = world.posterior(x, 1 - after, after)
    if smc:
        particles.weigh(log_twist(torch.stack([p @ reward for reward in rewards]), tilts))
        p = p[particles.finish()]
    return p.mean(0), particles


def distance(share: Tensor, law: Mixture) -> float:
    return float((share - law.prior).abs().sum() / 2)


@pytest.mark.parametrize("tilt", [-2.0, 2.0, 4.0])
@pytest.mark.parametrize("bad", [False, True], ids=["exact alpha", "spoilt alpha"])
def test_smc_arrives_at_the_odds_law_whatever_alpha_said_on_the_way(tilt: float, bad: bool) -> None:
    world = ring(graded=False)
    exact = world.odds(tilt)
    share, particles = landed(world, [tilt], [world.rewards], bad=bad)
    assert float(share @ world.rewards) == pytest.approx(exact.mean_reward(), abs=0.03)
    assert distance(share, exact) < 0.09, "the sampling error of 96 groups of 16"
    assert distance(share, world) > 0.15, "the base is not what it sampled"
    assert 3 < particles.survivors.float().mean() < SIZE


def test_two_rewards_make_the_true_product() -> None:
    world = ring()
    one, two = (world.points[:, 0] > 0.4).double(), (world.points[:, 1] > 0.2).double()
    exact = world.weighted((1 + math.expm1(2) * one) * (1 + math.expm1(2) * two))
    share, _ = landed(world, [2.0, 2.0], [one, two])
    assert float(share @ (one * two)) == pytest.approx(float(exact.prior @ (one * two)), abs=0.05)
    assert distance(share, exact) < 0.1


def test_the_stochastic_step_keeps_the_base() -> None:
    world = ring()
    share, _ = landed(world, [0.0], [world.rewards], smc=False)
    assert float(share @ world.rewards) == pytest.approx(world.mean_reward(), abs=0.02)
    assert distance(share, world) < 0.08


def test_a_step_without_fresh_noise_is_eulers() -> None:
    x, v, noise = torch.randn(3, 5, 2, dtype=torch.float64).unbind()
    torch.testing.assert_close(renoised(x, v, 0.8, 0.7, 0.0, noise), x - 0.1 * v)


def test_the_twist_is_the_laws_weight_and_never_overflows() -> None:
    alphas = torch.tensor([[0.1, 0.9], [0.5, 0.2]], dtype=torch.float64)
    for tilts in ([1.0, -2.0], [0.0, 3.0]):
        exact = sum(torch.log1p(math.expm1(tilt) * alpha) for tilt, alpha in zip(tilts, alphas, strict=True))
        torch.testing.assert_close(log_twist(alphas, tilts).diff(), exact.diff())
    assert bool(log_twist(alphas, [800.0, -800.0]).isfinite().all())


def test_systematic_resampling_rounds_the_expected_number() -> None:
    weights = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64)
    index = systematic(weights.log().repeat(2000, 1), torch.Generator().manual_seed(0))
    counts = torch.stack([(index == i).sum(1) for i in range(4)], 1).double()
    assert bool(((counts - 4 * weights).abs() < 1).all())
    torch.testing.assert_close(counts.mean(0), 4 * weights[0], atol=0.05, rtol=0)
    torch.testing.assert_close(effective(torch.zeros(1, 4)), torch.tensor([4.0]))


def test_even_groups_are_left_alone_and_uneven_ones_keep_their_order() -> None:
    particles = Particles(2, 4, torch.Generator().manual_seed(0))
    twist = torch.tensor([0.0, 0.0, 0.1, 0.0, 0.0, 9.0, 0.0, 0.0])
    assert particles.weigh(twist).tolist() == [0, 1, 2, 3, 5, 5, 5, 5]
    assert particles.survivors.tolist() == [4, 1]
    assert particles.weigh(twist[torch.tensor([0, 1, 2, 3, 5, 5, 5, 5])]).tolist() == list(range(8)), "nothing new"
    assert set(particles.finish()[:4].tolist()) <= {0, 1, 2, 3}
    assert particles.finish().tolist() == list(range(8))


def test_the_liking_of_several_judges() -> None:
    alphas = torch.tensor([[0.9, 0.2, 0.5], [0.3, 0.9, 0.5]])
    assert best(liking(alphas, [1.0, 1.0])[:, None]).item() == 0
    torch.testing.assert_close(liking(alphas, [2.0, -1.0]), (alphas[0] * (1 - alphas[1])).log())
    assert best(torch.tensor([[0.0, -1.0], [0.0, -0.5]])).tolist() == [0, 1]


def test_the_candidates_of_one_generator_do_not_depend_on_the_others() -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    both = draw_seeds(generators, 3, 2)
    alone = draw_seeds([torch.Generator().manual_seed(2)], 3, 1)
    assert both.shape == (3, 2) and torch.equal(both[:, 1:], alone)
    assert not torch.equal(draw_seeds(generators, 3, 2), both), "a generator advances"
