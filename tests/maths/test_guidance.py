"""The functions themselves: dtypes, shapes, exactness at the edges, promises, and what the error messages say."""

import math
from decimal import Decimal, localcontext

import pytest
import torch

from helpers.mixture import ring
from nft_pipeline import guidance as g


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# combine


def test_scale_zero_is_the_base_bit_for_bit():
    v_old, v_lora = random(3, 4), random(3, 4, seed=1)
    v_old[0, 0], v_lora[2, 1] = -0.0, math.nan
    assert g.combine(v_old, v_lora, 0) is v_old
    assert g.combine(v_old, v_lora, 0.0) is v_old
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        old = v_old.to(dtype)
        zero = g.combine(old, v_lora.to(dtype), torch.zeros(3))
        assert zero.dtype == dtype
        assert torch.equal(zero, old)
        assert torch.equal(torch.signbit(zero), torch.signbit(old))


def test_a_scale_for_each_sample():
    v_old, v_lora = random(3, 2, 4, 4), random(3, 2, 4, 4, seed=1)
    scale = torch.tensor([0.0, 1.0, -2.5])
    got = g.combine(v_old, v_lora, scale)
    for i, s in enumerate(scale.tolist()):
        torch.testing.assert_close(got[i], v_old[i] + s * (v_lora[i] - v_old[i]), rtol=0, atol=1e-6)
    assert torch.equal(got[0], v_old[0])
    assert torch.equal(g.combine(v_old, v_lora, torch.tensor(0.7)), g.combine(v_old, v_lora, 0.7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_combined_in_float32(dtype):
    v_old = (8 * random(4, 64)).to(dtype)
    v_lora = (v_old.float() + 0.1 * random(4, 64, seed=1)).to(dtype)
    exact = (v_old.double() + 7.3 * (v_lora.double() - v_old.double())).to(dtype)
    got = g.combine(v_old, v_lora, 7.3)
    assert got.dtype == dtype
    assert torch.equal(got, exact)
    assert not torch.equal(v_old + 7.3 * (v_lora - v_old), exact)  # what half precision would have given


def test_float64_stays_float64():
    v_old, v_lora = random(2, 3).double() / 3, random(2, 3, seed=1).double() / 3
    assert torch.equal(g.combine(v_old, v_lora, 0.1), v_old + 0.1 * (v_lora - v_old))


def test_combine_is_linear_in_the_scale():
    v_old, v_lora = random(5, 7).double(), random(5, 7, seed=1).double()
    step = g.combine(v_old, v_lora, 1.0) - v_old
    for scale in (-3.0, 0.25, 6.0):
        torch.testing.assert_close(g.combine(v_old, v_lora, scale) - v_old, scale * step)


# laws


@pytest.mark.parametrize("tilt", [-80.0, -20.0, -3.0, -1e-4, 1e-6, 0.5, 4.0, 30.0, 88.0, 500.0, 1e4])
def test_the_odds_scale_is_exact_in_float32(tilt):
    alpha = torch.tensor([0.0, 1e-30, 1e-7, 0.01, 0.3, 0.5, 0.77, 0.999, 1 - 2**-24])
    got = g.law_scale(alpha, tilt, "odds")
    assert got.dtype == torch.float32
    tilt32 = Decimal(float(torch.tensor(tilt)))  # the tilt as float32 holds it
    with localcontext() as context:
        context.prec = 60
        for a, s in zip(map(Decimal, alpha.tolist()), got.tolist(), strict=True):
            rho = tilt32.exp() - 1
            assert s == pytest.approx(float(rho * a / (1 + rho * a)), rel=1e-6, abs=1e-37)


def test_the_odds_scale_at_its_limits():
    alpha = torch.tensor([0.0, 1e-12, 0.25, 0.5, 1.0], dtype=torch.float64)
    assert g.law_scale(alpha, math.inf, "odds").tolist() == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert g.law_scale(alpha, 0.0, "odds").tolist() == [0.0] * 5
    below = g.law_scale(alpha[:-1], -math.inf, "odds")
    torch.testing.assert_close(below, -alpha[:-1] / (1 - alpha[:-1]), rtol=1e-15, atol=0)
    rising = g.law_scale(torch.tensor(0.3), torch.linspace(-50, 50, 201), "odds")
    assert bool((rising.diff() >= 0).all())
    assert float(rising.max()) <= 1.0


def test_the_nft_scale_is_linear_in_both():
    alpha = torch.tensor([0.0, 0.25, 1.0])
    assert g.law_scale(alpha, 4.0).tolist() == [0.0, 1.0, 4.0]
    assert g.law_scale(alpha, -2.0, "nft").tolist() == [0.0, -0.5, -2.0]
    assert g.law_scale(0.5, torch.tensor([1.0, 2.0])).tolist() == [0.5, 1.0]


def test_law_scale_widens_half_precision_and_forgives_rounding():
    assert g.law_scale(torch.tensor([0.5]).bfloat16(), 1.0, "odds").dtype == torch.float32
    assert g.law_scale(torch.tensor([0.5]).double(), 1.0).dtype == torch.float64
    assert g.law_scale(torch.tensor([1 + 2e-7]), 3.0).tolist() == [3.0]


# conversions


def test_beta_tilt_and_strength():
    assert g.tilt_from_beta(0.5) == 4.0
    assert g.beta_from_tilt(g.tilt_from_beta(0.37)) == pytest.approx(0.37)
    assert g.tilt_from_strength(1.5, 4.0) == 6.0
    assert g.tilt_from_strength(-1, 4.0) == -4.0
    assert g.tilt_from_strength(0, 4.0) == 0.0
    assert g.policy_scale(3.0, 2.0) == 1.5
    assert g.policy_scale(0.0, 2.0) == 0.0


def test_intervals_are_closed():
    t = torch.tensor([0.0, 0.3, 0.5, 0.7, 0.7001, 1.0])
    assert g.in_interval(t, (0.3, 0.7)).tolist() == [False, True, True, True, False, False]
    assert g.in_interval(t, (0.0, 1.0)).all()
    assert g.in_interval(1 + 1e-7, (0.5, 1)).tolist() is True
    assert g.in_interval(0.5, (0.5, 0.5)).dtype == torch.bool


# promises (M10)


def test_the_promised_rate_multiplies_the_odds():
    assert g.promised_rate(0.262, 4.0) == pytest.approx(0.951, abs=5e-4)
    for rate in (0.01, 0.4, 0.9):
        for tilt in (-5.0, 0.0, 2.0):
            odds = g.promised_rate(rate, tilt) / (1 - g.promised_rate(rate, tilt))
            assert odds == pytest.approx(rate / (1 - rate) * math.exp(tilt))
    assert [g.promised_rate(p, math.inf) for p in (0.0, 0.2, 1.0)] == [0.0, 1.0, 1.0]
    assert [g.promised_rate(p, -math.inf) for p in (0.0, 0.2, 1.0)] == [0.0, 0.0, 1.0]
    assert g.promised_rate(0.2, 1e4) == 1.0


@pytest.mark.parametrize("tilt", [-6.0, -1.0, 0.0, 0.5, 3.0, 12.0])
def test_the_promises_are_the_mean_rewards_of_the_tilted_pictures(tilt):
    binary = ring(graded=False)
    assert g.promised_rate(binary.mean_reward(), tilt) == pytest.approx(binary.exponential(tilt).mean_reward())
    rewards = ring().rewards
    even = torch.full_like(rewards, 1 / len(rewards))
    weights = even * (1 + math.expm1(tilt) * rewards)
    assert g.promised_mean(rewards, tilt) == pytest.approx(float(weights @ rewards / weights.sum()))
    assert g.promised_mean(binary.rewards, tilt) == pytest.approx(g.promised_rate(float(binary.rewards.mean()), tilt))


def test_the_promised_mean_at_its_limits():
    r = torch.tensor([0.2, 0.6, 1.0]).double()
    assert g.promised_mean(r, math.inf) == pytest.approx(float((r * r).sum() / r.sum()))
    assert g.promised_mean(r, -math.inf) == pytest.approx(float((r * (1 - r)).sum() / (1 - r).sum()))
    assert g.promised_mean([0.0, 0.0], math.inf) == 0.0
    assert g.promised_mean([1.0], -math.inf) == 1.0
    assert g.promised_mean([0.25, 0.75], 0.0) == 0.5


# errors: what happened, the value seen, what was expected

X = torch.zeros(2, 3)
ERRORS = {
    "law": (lambda: g.law_scale(0.5, 1.0, "odd"), r"unknown law 'odd'\. Did you mean 'odds'\? Known: 'nft', 'odds'"),
    "law far off": (lambda: g.law_scale(0.5, 1.0, "linear"), r"unknown law 'linear'\. Known: 'nft', 'odds'"),
    "alpha above 1": (
        lambda: g.law_scale(torch.tensor([0.2, 3.5]), 1.0),
        r"alpha must lie in \[0, 1\], got 3\.5.*sigmoid",
    ),
    "alpha NaN": (lambda: g.law_scale(torch.tensor([math.nan]), 1.0, "odds"), r"alpha must lie in \[0, 1\], got nan"),
    "nft tilt": (lambda: g.law_scale(0.5, math.inf, "nft"), r'finite under law="nft", got inf.*"odds"'),
    "odds tilt": (lambda: g.law_scale(0.5, math.nan, "odds"), r"tilt is NaN"),
    "no disliked side": (lambda: g.law_scale(1.0, -math.inf, "odds"), r"alpha = 1 with tilt = -inf.*-20 or above"),
    "odds overflow": (lambda: g.law_scale(1.0, -200.0, "odds"), r"no finite scale at alpha = 1"),
    "combine shapes": (lambda: g.combine(X, X[:1], 1.0), r"v_old \(2, 3\), v_lora \(1, 3\).*same batch"),
    "combine dtype": (lambda: g.combine(X.int(), X, 1.0), r"v_old has dtype torch\.int32"),
    "scale batch": (lambda: g.combine(X, X, torch.ones(3)), r"scale has shape \(3,\).*Expected a number.*\(2,\)"),
    "scale column": (lambda: g.combine(X, X, torch.ones(2, 1)), r"scale has shape \(2, 1\)"),
    "scale NaN": (lambda: g.combine(X, X, math.nan), r"scale must be a finite number, got nan"),
    "policy tilt": (lambda: g.policy_scale(math.inf, 1.0), r"tilt must be a finite number, got inf"),
    "policy train": (lambda: g.policy_scale(1.0, 0.0), r"tilt_train must be a finite number above 0, got 0"),
    "beta": (lambda: g.tilt_from_beta(-1.0), r"beta must be a finite number above 0, got -1\.0.*strength 0"),
    "beta inf": (lambda: g.tilt_from_beta(math.inf), r"beta must be a finite number above 0, got inf"),
    "tilt": (lambda: g.beta_from_tilt(0.0), r"tilt must be a finite number above 0, got 0\.0.*strength"),
    "strength": (lambda: g.tilt_from_strength(math.nan, 1.0), r"strength must be a finite number, got nan"),
    "recommended": (lambda: g.tilt_from_strength(1.0, -2.0), r"recommended_tilt must be a finite number above 0"),
    "rate": (lambda: g.promised_rate(26.2, 1.0), r"rate must lie in \[0, 1\], got 26\.2"),
    "rate tilt": (lambda: g.promised_rate(0.2, math.nan), r"tilt is NaN"),
    "rewards": (lambda: g.promised_mean([0.1, -0.5], 1.0), r"rewards must lie in \[0, 1\], got -0\.5.*raw scores"),
    "no rewards": (lambda: g.promised_mean([], 1.0), r"no rewards"),
    "interval order": (lambda: g.in_interval(0.5, (0.8, 0.2)), r"0 <= low <= high <= 1, got \(0\.8, 0\.2\)"),
    "interval range": (lambda: g.in_interval(0.5, (0, 1000)), r"got \(0, 1000\).*noise levels"),
    "interval NaN": (lambda: g.in_interval(0.5, (math.nan, 1)), r"got \(nan, 1\)"),
    "interval triple": (lambda: g.in_interval(0.5, (0, 0.5, 1)), r"two numbers \(low, high\), got \(0, 0\.5, 1\)"),
    "interval type": (lambda: g.in_interval(0.5, 0.3), r"two numbers \(low, high\), got 0\.3"),
    "timestep": (lambda: g.in_interval(torch.tensor([999.0]), (0, 1)), r"noise_level must lie.*got 999.*1000"),
}


@pytest.mark.parametrize("call, message", ERRORS.values(), ids=ERRORS.keys())
def test_errors_name_the_value_and_the_way_out(call, message):
    with pytest.raises(ValueError, match=message):
        call()
