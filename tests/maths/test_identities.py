"""M2 to M4, M9 and M10 of docs/theory.md, against exact sums over a mixture of data points, in float64."""

import math

import pytest
import torch

from helpers.mixture import Mixture, ring
from nft_pipeline.guidance import LAWS, combine, law_scale

TIMES = (0.05, 0.2, 0.5, 0.8, 0.97)
TILTS = (-8.0, -2.0, -0.5, 0.5, 1.0, 4.0, 8.0)


@pytest.fixture(params=[True, False], ids=["graded", "binary"])
def world(request) -> Mixture:
    return ring(graded=request.param)


def states(world: Mixture, t: float) -> torch.Tensor:
    """Undecided x_t, (72, 2): half way between a liked and a disliked neighbour, so mixed even at low noise."""
    generator = torch.Generator().manual_seed(round(1000 * t))
    liked, disliked = world.points[world.rewards > 0.5], world.points[world.rewards < 0.5]
    pairs = torch.cdist(liked, disliked).flatten().argsort()[:12].repeat(6)
    middle = (liked[pairs // len(disliked)] + disliked[pairs % len(disliked)]) / 2
    return (1 - t) * middle + t * t * torch.randn(72, 2, generator=generator, dtype=torch.float64)


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("t", TIMES)
def test_v_plus_is_the_velocity_of_the_reward_weighted_pictures(world, t):  # M2
    x = states(world, t)
    _, v_plus, _ = world.moments(x, t)
    close(v_plus, world.weighted(world.rewards).v_old(x, t))


@pytest.mark.parametrize("t", TIMES)
def test_delta_is_the_covariance_and_the_gradient_of_alpha(world, t):  # M3
    x = states(world, t).requires_grad_()
    v_old, v_plus, alpha = world.moments(x, t)
    (gradient,) = torch.autograd.grad(alpha.sum(), x)
    delta = alpha[:, None] * (v_plus - v_old)
    assert delta.abs().max() > 0.1  # at these states there is something to compare
    close(delta, world.delta(x, t), 1e-8)
    close(delta, -t / (1 - t) * gradient, 1e-8)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("tilt", TILTS)
def test_the_nft_law_has_the_score_of_the_tilted_density_at_each_t(world, t, tilt):  # M4
    x = states(world, t).requires_grad_()
    v_old, v_plus, alpha = world.moments(x, t)
    (score,) = torch.autograd.grad((world.log_density(x, t) - (x**2).sum(-1) / (2 * t * t) + tilt * alpha).sum(), x)
    v = combine(v_old, v_plus, law_scale(alpha, tilt, "nft")).detach()
    close(-(x + (1 - t) * v) / t, score, 1e-7)


# Every prediction type is an affine map of (x, target), the same for both branches. name -> (raw from eps and x_0,
# eps from raw and x), with x = a x_0 + s eps.
PREDICTIONS = {
    "epsilon": (lambda eps, x_0, a, s: eps, lambda raw, x, a, s: raw),
    "sample": (lambda eps, x_0, a, s: x_0, lambda raw, x, a, s: (x - a * raw) / s),
    "v": (lambda eps, x_0, a, s: a * eps - s * x_0, lambda raw, x, a, s: (s * x + a * raw) / (a * a + s * s)),
    "flow": (lambda eps, x_0, a, s: eps - x_0, lambda raw, x, a, s: (x + a * raw) / (a + s)),
}


@pytest.mark.parametrize("schedule", ["flow", "vp"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("law", LAWS)
def test_guiding_the_raw_output_then_converting_is_converting_then_guiding(world, schedule, prediction, law):  # M9
    t = 0.6
    a, s = (1 - t, t) if schedule == "flow" else (math.cos(t * math.pi / 2), math.sin(t * math.pi / 2))
    index = torch.arange(24).repeat(3)
    x = a * world.points[index] + s * torch.randn(72, 2, generator=torch.Generator().manual_seed(1)).double()
    p = world.posterior(x, a, s)
    alpha = p @ world.rewards
    plus = world.weighted(world.rewards).posterior(x, a, s)
    scale = law_scale(alpha, 3.0, law)
    to_raw, to_eps = PREDICTIONS[prediction]

    eps = (x[:, None, :] - a * world.points) / s  # of each possible picture, (B, N, 2)
    raw = to_raw(eps, world.points.expand_as(eps), a, s)
    raw_old, raw_plus = ((q[..., None] * raw).sum(1) for q in (p, plus))
    eps_old, eps_plus = ((q[..., None] * eps).sum(1) for q in (p, plus))

    guided = combine(eps_old, eps_plus, scale)
    close(to_eps(combine(raw_old, raw_plus, scale), x, a, s), guided, 1e-9)
    assert (guided - eps_old).abs().max() > 0.1


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("tilt", TILTS)
def test_the_odds_law_is_the_velocity_of_the_odds_tilted_pictures(world, t, tilt):  # M10
    x = states(world, t)
    v_old, v_plus, alpha = world.moments(x, t)
    # At tilt -8 and alpha near 1 the scale is near -e^8, which multiplies the rounding of v_plus - v_old.
    close(combine(v_old, v_plus, law_scale(alpha, tilt, "odds")), world.odds(tilt).v_old(x, t), 1e-8)


@pytest.mark.parametrize("t", TIMES)
def test_the_odds_law_tends_to_v_plus_and_to_v_minus(world, t):  # M10
    x = states(world, t)
    v_old, v_plus, alpha = world.moments(x, t)
    close(combine(v_old, v_plus, law_scale(alpha, math.inf, "odds")), v_plus)

    mixed = (alpha > 1e-6) & (alpha < 1 - 1e-6)  # elsewhere v_minus is a quotient of two rounding errors
    assert mixed.sum() >= 16
    x, v_old, v_plus, alpha = x[mixed], v_old[mixed], v_plus[mixed], alpha[mixed]
    close(combine(v_old, v_plus, law_scale(alpha, 60.0, "odds")), v_plus)
    v_minus = world.weighted(1 - world.rewards).v_old(x, t)
    close((v_old - alpha[:, None] * v_plus) / (1 - alpha[:, None]), v_minus, 1e-6)
    close(combine(v_old, v_plus, law_scale(alpha, -math.inf, "odds")), v_minus, 1e-6)
    close(combine(v_old, v_plus, law_scale(alpha, -60.0, "odds")), v_minus, 1e-6)


def test_for_binary_rewards_the_odds_tilt_is_the_exponential_tilt():  # M10
    world = ring(graded=False)
    for tilt in TILTS:
        close(world.odds(tilt).prior, world.exponential(tilt).prior)
    graded = ring(graded=True)
    assert (graded.odds(4.0).prior - graded.exponential(4.0).prior).abs().max() > 0.01


def test_the_two_laws_agree_to_first_order_in_the_tilt(world):  # M10
    t, x = 0.5, states(world, 0.5)
    v_old, v_plus, alpha = world.moments(x, t)
    delta = world.delta(x, t)

    def beyond_first_order(law: str, tilt: float) -> float:
        return float((combine(v_old, v_plus, law_scale(alpha, tilt, law)) - v_old - tilt * delta).abs().max())

    assert beyond_first_order("nft", 0.1) < 1e-12
    # The rest is second order: a tenth of the tilt leaves a hundredth of it.
    assert beyond_first_order("odds", 1e-3) / beyond_first_order("odds", 1e-4) == pytest.approx(100, rel=0.02)
    # The mean reward of either law leaves the base at the rate Var(r).
    variance = float(world.prior @ world.rewards**2) - world.mean_reward() ** 2
    for tilted in (world.odds(1e-5), world.exponential(1e-5)):
        assert (tilted.mean_reward() - world.mean_reward()) / 1e-5 == pytest.approx(variance, rel=1e-4)
