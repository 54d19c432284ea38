"""The calibrated dial in closed form: weights, gates and promises are the formulas they say they are."""

import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from helpers.adapters import config_values
from helpers.dialled import a_dial, tilt_map
from helpers.mixture import noise_levels, ring, solve_ode, spread_noise
from nft_pipeline.adapter import AdapterConfig
from nft_pipeline.dial.forecast import forecast
from nft_pipeline.dial.measured import END
from nft_pipeline.dial.promise import mean_promise, odds_rate, promise, tilt_at_weight, tilt_for_rate
from nft_pipeline.dial.scale import calibrated_scale, gated, mended, offset_of, weight_of, weight_scale
from nft_pipeline.errors import GuidanceError
from nft_pipeline.guidance import combine, law_scale

RATES = (0.02, 0.08, 0.3, 0.5, 0.9)
TILTS = (-6.0, -2.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
ALPHAS = torch.linspace(0.001, 0.999, 41, dtype=torch.float64)


def a_config(**changed) -> AdapterConfig:
    return replace(AdapterConfig.from_dict(config_values()), **changed)


# --- from a weight to the scale of a sample ---


@pytest.mark.parametrize(("rate", "tilt"), list(itertools.product(RATES, TILTS)))
def test_the_weight_of_the_odds_law_gives_the_odds_law(rate, tilt):
    rho = math.expm1(tilt)
    weight = rho * rate / (1 + rho * rate)
    # Far on the negative side the denominator is kept away from 0 where alpha is far above p.
    sound = 1 + math.expm1(tilt) * ALPHAS > 0.05 * (1 + math.expm1(tilt) * rate)
    scale = weight_scale(ALPHAS[sound], weight, rate)
    torch.testing.assert_close(scale, law_scale(ALPHAS[sound], tilt, "odds"), atol=1e-9, rtol=1e-9)
    assert float(weight_scale(torch.tensor([rate]), weight, rate)) == pytest.approx(weight, abs=1e-6)


def test_a_gate_of_slope_0_is_one_weight_for_all():
    for rate, weight in itertools.product(RATES, (-0.6, -0.1, 0.0, 0.3, 0.999, 1.0, 1.7)):
        alike = gated(ALPHAS, rate, 0.0, 3.0)
        assert bool((alike == rate).all())
        torch.testing.assert_close(weight_scale(alike, weight, rate), torch.full_like(ALPHAS, weight))


def test_a_gate_is_straight_on_the_logit_scale():
    inside = ALPHAS[(ALPHAS > 0.01) & (ALPHAS < 0.99)]
    for rate, slope, offset in itertools.product((0.1, 0.6), (0.2, 0.7, 1.0), (0.0, -0.8, 1.1)):
        expected = slope * (torch.logit(inside) + offset) + (1 - slope) * math.log(rate / (1 - rate))
        torch.testing.assert_close(torch.logit(gated(inside, rate, slope, offset)), expected)
    edge = gated(torch.tensor([0.0, 1.0]), 0.3, 1.0)
    assert bool((edge > 0).all()) and bool((edge < 1).all())


def test_the_scale_is_0_at_weight_0_rises_with_the_weight_and_has_no_jump_at_1():
    for rate in RATES:
        lowest = -0.9 * rate / (1 - rate)
        weights = torch.linspace(lowest, 2.0, 401, dtype=torch.float64)
        scales = torch.stack([weight_scale(ALPHAS, weight, rate) for weight in weights])
        assert bool((scales.diff(dim=0) > 0).all())
        assert bool((weight_scale(ALPHAS, 0.0, rate) == 0).all())
        below = weight_scale(ALPHAS, 1 - 1e-9, rate)
        torch.testing.assert_close(below, torch.ones_like(ALPHAS), atol=1e-5, rtol=0)
        assert bool((weight_scale(ALPHAS, 1.0, rate) == 1).all())
        assert bool((weight_scale(ALPHAS, -4.0, rate).isfinite()).all())


def test_each_sample_has_its_own_weight():
    weights = torch.tensor([0.0, 0.5, 1.5])
    scales = weight_scale(torch.full((3,), 0.8), weights, 0.4)
    assert scales.tolist() == pytest.approx([0.0, 0.5 * 0.8 / (0.4 * 0.5 + 0.5 * 0.8), 1.5])


def test_a_map_is_straight_between_its_tilts_and_constant_beyond():
    entry = tilt_map()
    tilts = torch.tensor([-9.0, -2.0, -1.0, 0.0, 0.5, 1.0, 2.5, 4.0, 9.0])
    assert weight_of(entry, tilts).tolist() == pytest.approx([-1, -1, -0.5, 0, 0.25, 0.5, 1.25, 2, 2])
    for weight in (-1.0, -0.3, 0.0, 0.4, 2.0):
        assert float(weight_of(entry, torch.tensor([tilt_at_weight(entry, weight)]))) == pytest.approx(weight)
    assert tilt_at_weight(entry, 7.0) == entry.highest and tilt_at_weight(entry, -7.0) == entry.lowest


def test_offsets_are_straight_between_their_noise_levels():
    dial = a_dial()
    levels = torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0])
    assert offset_of(dial, levels).tolist() == pytest.approx([0, 0, 0.25, 0.5, 0.5])
    assert offset_of(replace(dial, offsets=()), levels) == 0.0
    assert offset_of(replace(dial, offsets=((0.3, 0.7),)), levels).tolist() == pytest.approx([0.7] * 5)


def test_a_calibrated_scale_goes_through_map_offset_and_gate():
    dial, entry = a_dial(), tilt_map()
    alpha, tilt, level = torch.tensor([0.2, 0.7]), torch.tensor([0.5, 4.0]), torch.tensor([0.8, 0.1])
    trusted = 1 / (1 + math.exp(-(0.5 * (math.log(0.25) + 0.5) + 0.5 * math.log(0.4 / 0.6))))
    expected = [0.25 * trusted / (0.4 * 0.75 + 0.25 * trusted), 2.0]
    assert calibrated_scale(dial, entry, alpha, tilt, level).tolist() == pytest.approx(expected, rel=1e-5)
    for slope, known in ((0.0, alpha), (0.5, None)):
        scale = calibrated_scale(dial, replace(entry, slope=slope), known, tilt, level)
        assert scale.tolist() == pytest.approx([0.25, 2.0])


# --- promises ---


@pytest.mark.parametrize(("rate", "tilt"), list(itertools.product(RATES, TILTS)))
def test_odds_are_multiplied(rate, tilt):
    promised = odds_rate(rate, tilt)
    assert promised / (1 - promised) == pytest.approx(rate / (1 - rate) * math.exp(tilt), rel=1e-9)
    assert mean_promise(rate, 0.0, tilt) == promised
    assert odds_rate(0.0, tilt) == 0.0 and odds_rate(1.0, tilt) == 1.0


@pytest.mark.parametrize(
    ("rate", "spread"),
    [(0.3, 0.006), (0.5, 0.05), (0.3, 0.2), (0.05, 0.04), (0.05, 0.15), (0.5, 0.45), (0.9, 0.1), (0.95, 0.15)],
)
def test_a_mean_promise_is_the_mean_over_prompts(rate, spread):
    total = rate * (1 - rate) / spread**2 - 1
    beta = stats.beta(rate * total, (1 - rate) * total)
    assert mean_promise(rate, spread, 0.0) == pytest.approx(beta.mean(), abs=0.002)
    for tilt in (-4.0, 0.5, 6.0):
        # By quantiles: the density itself may be infinite at its ends.
        exact, _ = integrate.quad(lambda u, tilt=tilt: odds_rate(float(beta.ppf(u)), tilt), 0, 1, limit=200)
        assert mean_promise(rate, spread, tilt) == pytest.approx(exact, abs=0.003), tilt


def test_a_mean_promise_rises_and_is_less_than_that_of_the_mean():
    promises = [mean_promise(0.3, 0.2, tilt) for tilt in np.linspace(-8, 8, 65)]
    assert all(a < b for a, b in itertools.pairwise(promises))
    assert mean_promise(0.3, 0.2, 2.0) < odds_rate(0.3, 2.0) - 0.05


def test_a_promise_without_a_calibration_is_the_law_s():
    plain = a_config(dial=None, base_rate=0.3)
    found = promise(plain, 1.0)
    assert (found.tilt, found.base, found.measured, found.limit) == (2.0, 0.3, False, "")
    assert found.rate == pytest.approx(odds_rate(0.3, 2.0)) and math.isnan(found.error)
    assert "not measured" in str(found) and "30% liked becomes 76%" in str(found)
    assert promise(plain, 0.0, rate=0.6).rate == 0.6
    with pytest.raises(GuidanceError, match="nothing is known of the base rate of 'tiny-red'"):
        promise(a_config(dial=None, base_rate=None))
    for rate in (0, 1.0, -0.5):
        with pytest.raises(GuidanceError, match=f"rate is {rate!r}, expected a number between 0 and 1"):
            promise(plain, rate=rate)


def test_a_promise_with_a_calibration_is_the_map_s_as_far_as_it_reaches():
    config = a_config(dial=a_dial())
    found = promise(config, 0.5)
    assert (found.tilt, found.base, found.rate, found.error) == (1.0, 0.4, 0.6, 0.02)
    assert found.measured and found.mode == "single" and str(found) == "40% liked becomes 60% ± 2%"
    assert promise(config, 1.25).rate == pytest.approx(0.75)
    far, low = promise(config, 3.0), promise(config, -3.0)
    assert (far.rate, far.error) == (0.9, 0.03) and (low.rate, low.error) == (0.1, 0.02)
    assert far.limit.endswith("it reaches 90% at strength 2") and low.limit.endswith("it reaches 10% at strength -1")
    assert promise(config, 3.0, rate=0.2).rate == pytest.approx(odds_rate(0.2, 4.0))
    between = promise(config, 1.0, rate=0.3, spread=0.2)
    assert between.rate == pytest.approx(mean_promise(0.3, 0.2, 2.0)) and between.rate < odds_rate(0.3, 2.0)
    with pytest.raises(GuidanceError, match=r"spread is 0\.2 beside rate None, expected a number of 0 or more"):
        promise(config, 1.0, spread=0.2)
    law = promise(config, 1.0, mode="two_pass")
    assert not law.measured and law.rate == pytest.approx(odds_rate(0.4, 2.0)), "p as the calibration measured it"


def shares_said(limit: str) -> list[float]:
    return [int(percent) / 100 for percent in re.findall(r"reaches (\d+)%", limit)]


@pytest.mark.parametrize("strength", (-5.0, 5.0))
@pytest.mark.parametrize(
    "asked",
    [
        {},
        *({"rate": rate} for rate in (0.02, 0.2, 0.48, 0.98, (0.05, 0.6))),
        {"rate": 0.3, "spread": 0.2},
    ],
    ids=str,
)
def test_what_it_reaches_is_said_of_the_prompts_that_were_asked_about(strength, asked):
    """Never that of the calibration's prompts beside the promise for other ones."""
    further = tilt_map(tilts=(-4.0, 0.0, 5.0), weights=(-1.0, 0.0, 1.0), rates=(0.02, 0.4, 0.97), errors=(0.01,) * 3)
    config = a_config(dial=a_dial(tilt_map(), replace(further, mode="two_pass")))
    found, there = promise(config, strength, **asked), promise(config, strength, mode="two_pass", **asked)
    is_further = abs(there.rate - found.rate) > END
    assert shares_said(found.limit) == [round(one.rate, 2) for one in (found, there)[: 1 + is_further]]
    assert shares_said(there.limit) == [round(there.rate, 2)]
    assert there.limit.startswith("more is not to be had from this adapter")


def test_a_mode_is_named_only_where_it_reaches_further_for_these_prompts():
    """Its own map may begin at another base rate: a higher share there need not be a larger tilt."""
    higher = tilt_map(mode="two_pass", tilts=(0.0, 3.0), weights=(0.0, 1.0), rates=(0.6, 0.97), errors=(0.01, 0.01))
    config = a_config(dial=a_dial(tilt_map(), higher))
    assert "mode two_pass reaches 97%" in promise(config, 5.0).limit
    assert "two_pass" not in promise(config, 5.0, rate=0.3).limit, "tilt 3 is less than the 4 of its own mode"


def test_a_rate_finds_the_tilt_that_promises_it():
    measured, plain = a_config(dial=a_dial()), a_config(dial=None, base_rate=0.3)
    for target in (0.1, 0.15, 0.4, 0.5, 0.77, 0.9):
        for config in (measured, plain):
            strength = tilt_for_rate(config, target) / config.tilt
            assert promise(config, strength).rate == pytest.approx(target, abs=1e-6)


def test_a_rate_out_of_reach_is_said_with_the_ends():
    config = a_config(dial=a_dial())
    for target in (0.05, 0.95):
        with pytest.raises(
            GuidanceError, match=rf"nft_rate is {target}, and 'tiny-red' reaches shares from 0\.10 to 0"
        ):
            tilt_for_rate(config, target)
    assert tilt_for_rate(config, 0.903) == 4.0, "an end is met within half a percent"
    for wrong in (0, 1, -0.2, True, "0.5", None, math.nan):
        with pytest.raises(GuidanceError, match="expected a number between 0 and 1: the share of liked pictures"):
            tilt_for_rate(config, wrong)
    with pytest.raises(
        GuidanceError, match=r"it was never calibrated\. Run diffusion-nft calibrate on it once, or give nft_strength"
    ):
        tilt_for_rate(a_config(dial=None, base_rate=None), 0.5)
    policy = replace(a_config(kind="policy", base_rate=None), dial=a_dial())
    with pytest.raises(GuidanceError, match="its calibration has no map of the mode two_pass"):
        tilt_for_rate(policy, 0.5, mode="two_pass")


def test_where_two_passes_go_on_promise_and_rate_are_those_of_the_odds_law_all_the_way():
    """Two exact maps of one base rate: whatever a tilt is drawn by, it multiplies the odds by e^tilt."""

    def exact(mode, low, high, **more):
        tilts = tuple([*np.linspace(low, 0, 9)[:-1].tolist(), *np.linspace(0, high, 17).tolist()])
        rates = tuple(odds_rate(0.4, tilt) for tilt in tilts)
        weights = tuple(tilt / 2 for tilt in tilts)
        return tilt_map(mode=mode, tilts=tilts, weights=weights, rates=rates, errors=(0.01,) * len(tilts), **more)

    one, two = exact("single", -2.0, 1.5, goes_on=True), exact("two_pass", -1.0, 4.0)
    config, alone = a_config(dial=a_dial(one, two)), a_config(dial=a_dial(replace(one, goes_on=False), two))
    for tilt in np.linspace(-2.0, 4.0, 61):
        found = promise(config, tilt / config.tilt)
        assert found.rate == pytest.approx(odds_rate(0.4, tilt), abs=2e-3) and found.limit == ""
        assert found.mode == ("single" if tilt <= 1.5 else "two_pass")
        assert tilt_for_rate(config, found.rate) == pytest.approx(tilt, abs=2e-2)
    assert promise(config, 5.0).limit.endswith(f"it reaches {odds_rate(0.4, 4.0):.0%} at strength 2")
    assert promise(config, 5.0, rate=0.2).rate == pytest.approx(odds_rate(0.2, 4.0))
    assert promise(alone, 5.0).rate == pytest.approx(odds_rate(0.4, 1.5)), "as before where a map does not say so"
    with pytest.raises(GuidanceError, match="in the mode single \\(measured"):
        tilt_for_rate(alone, odds_rate(0.4, 3.0))


# --- the forecast ---


def test_the_forecast_multiplies_the_odds_of_alpha():
    config, level = a_config(dial=None), torch.full((3,), 0.5)
    alpha = torch.tensor([0.1, 0.5, math.nan])
    found = forecast(config, None, alpha, 2.0, level)
    assert found[:2].tolist() == pytest.approx([odds_rate(0.1, 2.0), odds_rate(0.5, 2.0)]) and bool(found[2].isnan())
    for tilt, end in ((1e4, 1.0), (-1e4, 0.0)):
        sure = forecast(config, None, torch.tensor([0.0, 0.3, 1.0]), tilt, level)
        assert bool(sure.isfinite().all()) and float(sure[1]) == pytest.approx(end, abs=1e-6)


def test_the_forecast_of_a_dial_is_mended_and_ends_where_its_map_does():
    dial, level = a_dial(), torch.full((2,), 0.8)
    config, alpha = a_config(dial=a_dial()), torch.tensor([0.1, 0.6])
    best = [float(value) for value in mended(dial, alpha, level)]
    assert best == pytest.approx(
        [1 / (1 + math.exp(-(0.8 * (math.log(a / (1 - a)) + 0.5) + 0.2 * math.log(2 / 3)))) for a in (0.1, 0.6)]
    )
    found = forecast(config, dial.own, alpha, 9.0, level)
    assert found.tolist() == pytest.approx([odds_rate(value, 4.0) for value in best], rel=1e-5)


@pytest.mark.parametrize("tilt", [0.0, 2.0, -2.0])
def test_on_an_exact_mixture_the_mean_forecast_stays_the_same_over_the_steps(tilt):
    world, levels = ring(graded=False), noise_levels(40)
    means = []

    def velocity(x, t):
        v_old, v_plus, alpha = world.moments(x, t)
        means.append(float(forecast(a_config(), None, alpha, tilt, torch.tensor(t)).mean()))
        return combine(v_old, v_plus, law_scale(alpha, tilt, "odds"))

    solve_ode(velocity, spread_noise(2048), levels)
    assert means[0] == pytest.approx(odds_rate(world.mean_reward(), tilt), abs=0.02)
    assert max(means) - min(means) < 0.02
