"""A whole calibration in a world whose truth is known: what is promised is drawn, with other prompts and noises."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.dialled import KnownDraws, judge_liked
from nft_pipeline.adapters.config import AdapterConfig
from nft_pipeline.dial.measured import dial_faults
from nft_pipeline.dial.promise import mean_promise, promise, tilt_for_rate
from nft_pipeline.dial.scale import weight_of
from nft_pipeline.training.dial import calibrate as module
from nft_pipeline.training.dial.calibrate import LEAST, SHARES, Settings, calibrate
from nft_pipeline.training.dial.draws import Interrupted
from nft_pipeline.training.dial.measure_adapter import with_dial

TILTS = (-2.0, -1.0, 0.5, 1.0, 2.0)


def rates_of(mean, spread, count, seed):
    """Base rates of prompts."""
    total = mean * (1 - mean) / spread**2 - 1
    return np.clip(np.random.default_rng(seed).beta(mean * total, (1 - mean) * total, count), 1e-3, 1 - 1e-3)


def rises(weight, mode, slope):
    """The tilt that a weight gives: it slows down, as a LoRA does. At weight 1 all modes draw the same."""
    return 2.4 * math.tanh(weight) * (weight / 4 + 3 / 4 if mode == "two_pass" else 1.0)


def flat(weight, mode, slope):
    return 0.0


def calibrated(monkeypatch, shift=rises, *, mean=0.3, spread=0.15, pictures=2000, seed=0, prompts=96, **changed):
    """A world and its calibration."""
    kind, judge = changed.pop("kind", "policy"), changed.pop("judge", judge_liked)
    draws = KnownDraws(rates_of(mean, spread, prompts, seed), shift, kind, seed=seed)
    monkeypatch.setattr(module, "read_noised", draws.alpha)
    result = calibrate(draws, judge, Settings(pictures, "reward", "known", **changed))
    assert dial_faults(result.dial) == []
    return draws, result


def misses(draws, result, mean, spread):
    """At `TILTS`, each (5,): how far the true rate is off odds times e^tilt for the prompts of the world, and whether
    it is within 2 standard errors, and a hundredth, of what was promised."""
    config = replace(draws.config, tilt=1.0, beta=2.0, dial=result.dial)
    others, reach = rates_of(mean, spread, 20_000, 10**6), result.dial.own_reach
    off, within = [], []
    for tilt in TILTS:
        promised, entry = promise(config, tilt), reach.map_at(tilt)
        weight = float(weight_of(entry, torch.tensor([tilt]))[0])
        true = draws.true_rate(weight, entry.mode, entry.slope, others)
        odds = others * np.exp(min(max(tilt, reach.lowest), reach.highest))
        off.append(true - (odds / (1 - others + odds)).mean())
        within.append(abs(true - promised.rate) < 2 * promised.error + 0.01)
    return off, within


@pytest.mark.parametrize(
    ("mean", "spread", "kind"),
    [
        (0.3, 0.15, "policy"),
        (0.3, 0.15, "positive"),
        (0.05, 0.04, "policy"),
        (0.95, 0.04, "policy"),
        (0.6, 0.2, "positive"),
    ],
)
def test_what_is_promised_is_drawn(monkeypatch, mean, spread, kind):
    missed = []
    for seed in range(6):
        draws, result = calibrated(monkeypatch, mean=mean, spread=spread, kind=kind, seed=seed)
        assert result.learned and result.dial.note == ""
        missed.append(misses(draws, result, mean, spread))
    off, within = np.moveaxis(missed, 1, 0)
    assert np.sqrt((off**2).mean()) < 0.035 and np.abs(off).max() < 0.12, np.round(off, 3)
    assert np.abs(off.mean(0)).max() < 0.04, np.round(off, 3)
    assert within.mean() > 0.85, within


@pytest.mark.parametrize(
    ("shift", "what"),
    [
        (lambda weight, mode, slope: 2 * math.tanh(3 * weight), "all within a third of the weight"),
        (
            lambda weight, mode, slope: 3.5 * (1 / (1 + math.exp(4 * (0.6 - weight))) - 0.08),
            "nothing up to a half of it",
        ),
        (lambda weight, mode, slope: 2.5 * weight, "even"),
    ],
)
def test_loras_that_answer_to_their_weight_otherwise_keep_the_promise_too(monkeypatch, shift, what):
    off = np.array([misses(*calibrated(monkeypatch, shift, seed=seed), 0.3, 0.15)[0] for seed in range(6)])
    assert np.sqrt((off**2).mean()) < 0.035, f"{what}: {np.round(off, 3)}"


def test_a_tilt_multiplies_the_odds_of_each_prompt(monkeypatch):
    """Without a gate every prompt's true tilt at the mapped weight is the tilt asked for, on average over worlds."""
    reached = {tilt: [] for tilt in (-1.0, 0.5, 1.0)}
    for seed in range(8):
        draws, result = calibrated(monkeypatch, seed=seed)
        entry = result.dial.own
        for tilt, shifts in reached.items():
            shifts.append(draws.shift(float(weight_of(entry, torch.tensor([tilt]))[0]), entry.mode, entry.slope))
    for tilt, shifts in reached.items():
        assert np.mean(shifts) == pytest.approx(tilt, abs=3 * np.std(shifts) / 8**0.5 + 0.05), tilt


def test_the_dial_says_what_was_measured(monkeypatch):
    draws, result = calibrated(monkeypatch, kind="positive", seed=3)
    dial = result.dial
    assert dial.rate == pytest.approx(0.3, abs=0.06) and 0.01 < dial.rate_error < 0.04
    assert dial.spread == pytest.approx(0.15, abs=0.06)
    assert dial.slope == pytest.approx(1.0, abs=0.1), "its alpha is right"
    assert all(abs(offset) < 0.5 for _, offset in dial.offsets)
    assert (dial.judged_by, dial.judge, dial.pictures, dial.steps) == ("reward", "known", int(SHARES["base"] * 2000), 4)
    assert result.forwards == draws.forwards
    assert [t for t, _ in result.mean_alphas] == [1.0, 0.75, 0.5, 0.25]
    spent = sum(count * (2 if mode == "two_pass" else 1) for count, _, mode, _ in draws.drawn)
    assert 0.9 * 2000 < spent < 1.05 * 2000
    assert {(mode, slope > 0) for _, _, mode, slope in draws.drawn[1:]} == {
        ("single", False), ("single", True), ("two_pass", True),
    }  # fmt: skip
    assert [entry.mode for entry in dial.maps] == ["single", "two_pass"]
    for entry in dial.maps:
        assert (
            entry.tilts[0] < -0.9
            and entry.tilts[-1] > 1
            and entry.rates[entry.tilts.index(0)] == pytest.approx(dial.rate, abs=0.05)
        )


def test_the_head_is_tried_where_the_sampler_reads_it(monkeypatch):
    """A head may be wrong in its own way at pure noise, where it was never trained and every sampling begins."""
    draws = KnownDraws(rates_of(0.3, 0.15, 96, 0), rises, "positive")

    def too_small_at_pure_noise(draws_of_all, latents, prompts, level, noise):
        alpha = draws.alpha(draws_of_all, latents, prompts, level, noise)
        return alpha * 0.6 if level > 0.9995 else alpha

    monkeypatch.setattr(module, "read_noised", too_small_at_pure_noise)
    dial = calibrate(draws, judge_liked, Settings(4000, "reward", "known")).dial
    levels, offsets = zip(*dial.offsets, strict=True)
    assert levels[-1] == 1.0 and offsets[-1] - offsets[-2] > 0.4, dial.offsets


def test_a_rate_that_is_asked_for_is_hit(monkeypatch):
    missed = []
    for seed in range(6):
        draws, result = calibrated(monkeypatch, seed=seed)
        config, entry = replace(draws.config, dial=result.dial), result.dial.own
        for target in (0.2, 0.5, 0.7):
            weight = float(weight_of(entry, torch.tensor([tilt_for_rate(config, target)]))[0])
            true = draws.true_rate(weight, rates=rates_of(0.3, 0.15, 20_000, 10**6))
            missed.append(true - target)
    assert abs(np.mean(missed)) < 0.02 and np.max(np.abs(missed)) < 0.09


def test_the_reach_is_said_and_no_more_is_promised(monkeypatch):
    draws, result = calibrated(monkeypatch, lambda weight, mode, slope: 1.2 * math.tanh(2 * weight), seed=1)
    config = replace(draws.config, tilt=1.0, beta=2.0, dial=result.dial)
    far = promise(config, 5.0)
    truth = draws.true_rate(1.4, rates=rates_of(0.3, 0.15, 20_000, 10**6))
    assert far.rate == pytest.approx(truth, abs=0.03 + 2 * far.error)
    assert "more is not to be had from this adapter: it reaches" in far.limit
    assert far.rate < mean_promise(0.3, 0.15, 2.0)


@pytest.mark.parametrize("kind", ["policy", "positive"])
@pytest.mark.parametrize(("mean", "spread", "pictures"), [(0.3, 0.15, 1000), (0.05, 0.04, 400)])
def test_what_does_not_rise_is_not_recommended(monkeypatch, kind, mean, spread, pictures):
    alarms = 0
    for seed in range(8):
        _, result = calibrated(monkeypatch, flat, mean=mean, spread=spread, pictures=pictures, kind=kind, seed=seed)
        alarms += result.learned
        if not result.learned:
            assert result.reason.startswith("not learnable from this: no weight surely raises the share of liked")
            assert result.dial.note == result.reason
    assert alarms <= 1


def test_what_falls_is_not_recommended(monkeypatch):
    draws, result = calibrated(monkeypatch, lambda weight, mode, slope: -2.0 * weight)
    assert not result.learned and result.dial.own.highest <= 0.1
    config = with_dial(draws.config, result.dial)
    assert float(weight_of(result.dial.own, torch.tensor([config.tilt]))) == pytest.approx(1.0), "strength 1 stays"


def test_a_judge_with_gaps_promises_from_what_it_judged(monkeypatch):
    random = np.random.default_rng(0)

    def sometimes(drawn, prompts):
        r = judge_liked(drawn, prompts)
        return np.where(random.random(len(r)) < 0.2, np.nan, r)

    draws, result = calibrated(monkeypatch, kind="positive", judge=sometimes)
    assert result.learned and np.abs(misses(draws, result, 0.3, 0.15)[0]).max() < 0.08


def test_one_prompt_is_enough_for_a_map(monkeypatch):
    draws, result = calibrated(monkeypatch, prompts=1, pictures=1000)
    assert result.learned and result.dial.prompts == 1 and result.dial.spread == 0.0
    entry = result.dial.own
    for tilt, weight in zip(entry.tilts, entry.weights, strict=True):
        promised = np.interp(tilt, entry.tilts, entry.rates)
        error = np.interp(tilt, entry.tilts, entry.errors)
        assert abs(draws.true_rate(weight, entry.mode, entry.slope) - promised) < 0.01 + 3 * error


@pytest.mark.parametrize("liked", [0.0, 1.0])
def test_a_judge_who_likes_all_or_nothing_teaches_nothing(monkeypatch, liked):
    _, result = calibrated(monkeypatch, judge=lambda drawn, prompts: np.full(len(prompts), liked), pictures=400)
    assert not result.learned and 0 < result.dial.rate < 1


def test_graded_liking_is_calibrated_too(monkeypatch):
    def grade(drawn, prompts):
        return 0.2 + 0.5 * judge_liked(drawn, prompts)

    _, result = calibrated(monkeypatch, judge=grade)
    assert result.learned and result.dial.rate == pytest.approx(0.35, abs=0.04)


def turns_early(weight, mode, slope):
    """One pass turns at a weight of 0.9 and a tilt of 0.8; two passes go on."""
    return 1.2 * weight if mode == "two_pass" else 1.8 * weight - weight**2


def test_the_own_way_goes_on_in_two_passes_where_one_turns_early(monkeypatch):
    draws, result = calibrated(monkeypatch, turns_early, pictures=4000, seed=2)
    first, *_ = result.dial.maps
    assert first.mode == "single" and first.goes_on and "and two passes where it ends" in result.reason
    reach = result.dial.own_reach
    assert reach.highest > first.highest + 0.5 and reach.map_at(first.highest).mode == "single"
    assert np.abs(misses(draws, result, 0.3, 0.15)[0]).max() < 0.05
    config = replace(draws.config, tilt=1.0, beta=2.0, dial=result.dial)
    assert [promise(config, tilt).mode for tilt in TILTS] == ["single"] * 3 + ["two_pass"] * 2
    for target in (first.rates[-1] - 0.03, first.rates[-1] + 0.03, reach.rates[-1] - 0.01):
        tilt = tilt_for_rate(config, target)
        drawn = reach.map_at(tilt)
        weight = float(weight_of(drawn, torch.tensor([tilt]))[0])
        assert draws.true_rate(weight, drawn.mode) == pytest.approx(target, abs=0.04), target


def test_two_passes_that_reach_no_further_are_not_gone_on_in(monkeypatch):
    for seed in range(6):
        _, result = calibrated(monkeypatch, lambda weight, *_: 2 * math.tanh(2 * weight), pictures=1200, seed=seed)
        assert not any(entry.goes_on for entry in result.dial.maps)
        assert result.dial.own_reach.maps == (result.dial.own,)


def test_alpha_cannot_vouch_for_its_own_gate(monkeypatch):
    draws = KnownDraws(rates_of(0.3, 0.15, 48, 0), rises, "positive")
    monkeypatch.setattr(module, "read_noised", draws.alpha)
    result = calibrate(draws, judge_liked, Settings(600, "alpha", "the head"))
    assert {slope for _, weight, _, slope in draws.drawn[1:]} == {0.0} and result.dial.judged_by == "alpha"


def test_too_small_a_budget_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=f"of {LEAST - 1} pictures says nothing; it needs {LEAST} or more"):
        calibrated(monkeypatch, pictures=LEAST - 1)
    _, result = calibrated(monkeypatch, pictures=LEAST, kind="positive")
    assert result.dial.pictures == int(SHARES["base"] * LEAST)


def test_a_stop_ends_it(monkeypatch):
    draws = KnownDraws(rates_of(0.3, 0.15, 24, 0), rises)
    real = draws.draw

    def stops(rows, weights, mode, slope, dial=None):
        if len(draws.drawn) >= 3:
            raise Interrupted("the calibration was interrupted")
        return real(rows, weights, mode, slope, dial)

    monkeypatch.setattr(draws, "draw", stops)
    with pytest.raises(Interrupted):
        calibrate(draws, judge_liked, Settings(400, "reward", "known"))


# --- what an adapter keeps of it ---


def config_with(kind="policy", **changed) -> AdapterConfig:
    return replace(KnownDraws([0.5], rises, kind).config, **changed)


def test_a_policy_goes_on_being_the_lora_as_its_author_made_it(monkeypatch):
    draws, result = calibrated(monkeypatch)
    config = with_dial(draws.config, result.dial)
    assert config.tilt == pytest.approx(np.interp(1.0, result.dial.own.weights, result.dial.own.tilts))
    assert float(weight_of(config.dial.own, torch.tensor([config.tilt]))) == pytest.approx(1.0, abs=1e-4)
    assert config.tilt * config.beta == pytest.approx(2.0)
    positive = config_with("positive")
    assert with_dial(positive, result.dial).tilt == positive.tilt


def test_a_map_of_another_guidance_scale_stands_beside_the_first(monkeypatch):
    _, first = calibrated(monkeypatch, pictures=400)
    _, second = calibrated(monkeypatch, pictures=400, seed=1)
    at_3 = replace(second.dial, maps=tuple(replace(entry, guidance_scale=3.0) for entry in second.dial.maps))
    one = with_dial(config_with(), first.dial)
    both = with_dial(one, at_3)
    assert both.dial.own == first.dial.own and both.dial.rate == first.dial.rate and both.tilt == one.tilt
    assert both.dial.maps == (*first.dial.maps, *at_3.maps)
    again = with_dial(both, replace(at_3, maps=tuple(replace(entry, pictures=7) for entry in at_3.maps)))
    assert len(again.dial.maps) == len(both.dial.maps) and again.dial.maps[-1].pictures == 7
    anew = with_dial(both, second.dial)
    assert anew.dial.own == second.dial.own and anew.dial.rate == second.dial.rate
    assert anew.dial.maps == (*second.dial.maps, *at_3.maps)
