"""Following the guided ODE: the odds law arrives at its own law, the nft law near the exponential tilt only."""

import math

import pytest

from helpers.mixture import Mixture, noise_levels, ring, solve_ode, spread_noise
from nft_pipeline.guidance import combine, law_scale

LEVELS = noise_levels(40)


def sampled(world: Mixture, tilt: float, law: str, count: int = 2048):
    """Share of the guided samples that lands on each picture, (N,)."""

    def velocity(x, t):
        v_old, v_plus, alpha = world.moments(x, t)
        return combine(v_old, v_plus, law_scale(alpha, tilt, law))

    return world.landed(solve_ode(velocity, spread_noise(count), LEVELS), LEVELS[-1])


def distance(share, law: Mixture) -> float:
    """Total variation between the samples and the exact law."""
    return float((share - law.prior).abs().sum() / 2)


@pytest.mark.parametrize("graded", [True, False], ids=["graded", "binary"])
@pytest.mark.parametrize("tilt", [-4.0, -1.0, 0.5, 2.0, 8.0, math.inf])
def test_the_odds_ode_arrives_at_the_odds_law(graded, tilt):
    world = ring(graded)
    exact = world.weighted(world.rewards) if math.isinf(tilt) else world.odds(tilt)
    share = sampled(world, tilt, "odds")
    assert float(share @ world.rewards) == pytest.approx(exact.mean_reward(), abs=0.004)
    assert distance(share, exact) < 0.02
    assert distance(share, world) > 0.04  # the base is not what it sampled


def test_the_nft_ode_is_a_first_order_tilt():
    world = ring()
    for tilt in (-0.5, 0.5):
        share = sampled(world, tilt, "nft")
        assert float(share @ world.rewards) == pytest.approx(world.exponential(tilt).mean_reward(), abs=0.005)
    errors = [distance(sampled(world, tilt, "nft"), world.exponential(tilt)) for tilt in (1.0, 2.0, 4.0, 8.0)]
    assert errors == sorted(errors)
    assert errors[0] < 0.03
    assert errors[-1] > 0.2


def test_for_binary_rewards_both_laws_aim_at_one_law_and_only_the_odds_law_arrives():
    world = ring(graded=False)
    assert distance(sampled(world, 4.0, "odds"), world.exponential(4.0)) < 0.02
    assert distance(sampled(world, 4.0, "nft"), world.exponential(4.0)) > 0.2
