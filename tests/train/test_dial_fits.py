"""The statistics behind a calibration find what is known: curves, slopes, spreads, scales and budgets."""

import math

import numpy as np
import pytest
import torch

from helpers.dialled import sigmoid
from helpers.tiny_run import ONLINE, SMALL, config
from nft_pipeline.training.data.optimality import optimality, unit
from nft_pipeline.training.dial.budget import MOST, calibration_pictures, forwards_of
from nft_pipeline.training.dial.curve import fit_curve, rate_between_prompts
from nft_pipeline.training.dial.draws import Drawn
from nft_pipeline.training.dial.judges import RewardJudge
from nft_pipeline.training.dial.liking import BaseScale
from nft_pipeline.training.dial.trust import fit_trust
from nft_pipeline.training.rewards.contract import RewardError

# --- the share of liked pictures over the weight ---

WEIGHTS = np.array([-0.6, 0.0, 0.0, 0.2, 0.5, 1.0, 1.4])


def drawn_curve(seed, logit, prompts=48, each=4, spread=0.5):
    """Pictures at `WEIGHTS` of the same prompts and noises, so that errors at two weights go together."""
    random = np.random.default_rng(seed)
    of_prompt = np.repeat(random.normal(0, spread, prompts), each)
    noise = random.logistic(size=prompts * each)
    r = [(logit(weight) + of_prompt + noise > 0).astype(float) for weight in WEIGHTS]
    groups = np.repeat(np.arange(prompts), each)
    return np.repeat(WEIGHTS, len(groups)), np.concatenate(r), np.tile(groups, len(WEIGHTS))


def true_rate(logit, weight, spread=0.5):
    return float(sigmoid(logit(weight) + spread * np.random.default_rng(0).standard_normal(20_000)).mean())


def test_the_curve_is_unbiased_and_its_errors_are_honest():
    def logit(weight):
        return -1.0 + 2.0 * weight - 0.4 * weight**2

    at = np.array([-0.6, 0.0, 0.35, 1.0, 1.4])
    curves = [fit_curve(*drawn_curve(seed, logit)) for seed in range(150)]
    missed = np.array([curve.rate(at) for curve in curves]) - [true_rate(logit, weight) for weight in at]
    errors = np.array([curve.error(at) for curve in curves])
    assert np.abs(missed.mean(0)).max() < 0.012
    assert missed.std(0) == pytest.approx(np.sqrt((errors**2).mean(0)), rel=0.2)
    covered = (np.abs(missed) < errors).mean(0)
    assert covered.min() > 0.5 and covered.max() < 0.8, f"68 % are expected within the stated error, {covered}"
    assert {(curve.low, curve.high) for curve in curves} == {(-0.6, 1.4)}


def rows_in_turn(seed, prompts=60, each=2, spread=2.0):
    """As a calibration draws: weight 0 on all rows, a part of them in turn at every other weight, prompts unalike.

    Gives (weights, r, groups, rows) and the rate of the very prompts and noises at each weight.
    """
    random = np.random.default_rng(seed)
    groups = np.repeat(np.arange(prompts), each)
    of_prompt = np.repeat(random.normal(0, spread, prompts), each)
    noise = random.logistic(size=prompts * each)
    parts = [(0.0, np.arange(prompts * each))]
    for place, weight in enumerate((-0.6, 0.3, 0.7, 1.2) * 2):
        parts.append((weight, (place * 30 + np.arange(30)) % (prompts * each)))

    def liked(weight, rows):
        return (2 * weight - 0.5 + of_prompt[rows] + noise[rows] > 0).astype(float)

    weights = np.concatenate([np.full(len(rows), weight) for weight, rows in parts])
    rows = np.concatenate([rows for _, rows in parts])
    r = np.concatenate([liked(weight, rows) for weight, rows in parts])
    everyone = np.arange(prompts * each)
    return (weights, r, groups[rows], rows), {weight: liked(weight, everyone).mean() for weight in (0.3, 0.7, 1.2)}


def test_a_weight_that_met_easy_prompts_by_chance_is_not_taken_for_a_good_one():
    off = {"evened": [], "plain": []}
    scaled = []
    for seed in range(100):
        drawn, rates = rows_in_turn(seed)
        curves = {"evened": fit_curve(*drawn), "plain": fit_curve(*drawn[:3])}
        for name, curve in curves.items():
            off[name].append([float(curve.rate(weight)) - rate for weight, rate in rates.items()])
        population = true_rate(lambda weight: 2 * weight - 0.5, 0.7, spread=2.0)
        scaled.append((float(curves["evened"].rate(0.7)) - population) / float(curves["evened"].error(0.7)))
    evened, plain = (np.sqrt(np.square(off[name]).mean(0)) for name in ("evened", "plain"))
    assert (evened < 0.7 * plain).all(), f"evened {evened}, plain {plain}"
    assert np.abs(np.mean(off["evened"], 0)).max() < 0.012
    assert np.std(scaled) == pytest.approx(1.0, abs=0.2), "its errors are still those of other prompts"


CATEGORIES = np.log([0.81 / 0.19, 0.22 / 0.78, 0.23 / 0.77, 0.7 / 0.3, 0.15 / 0.85, 0.04 / 0.96])
TRIED = {-0.6: 221, -0.34: 150, -0.2: 71, 0.12: 71, 0.165: 150, 0.3: 71}  # weights, and pictures at each
TRIED |= {0.335: 150, 0.6: 71, 0.78: 150, 1.0: 71, 1.4: 221}


def unequal_prompts(seed, count):
    """Logits of base rates that differ by .3 between prompts, and how far a policy moves each at weight 1."""
    random = np.random.default_rng(seed)
    kind = random.integers(0, 6, count)
    return CATEGORIES[kind] + random.normal(0, 0.8, count), np.array([2.4, 2.5, 4, 2.1, 1.8, 2.6])[kind]


def stops_at_1(weight):
    return (math.log1p(math.exp(-8.24)) - np.logaddexp(-8.4 * weight, -8.24)) / 8 + (weight if weight < 0 else 0) * 0.2


def test_prompts_as_unequal_as_those_of_a_benchmark_are_within_the_stated_errors():
    """As a calibration draws: two noises of each of 300 prompts, in turn, less alike to the base's the more weight."""
    at = (0.0, 0.3, 0.5, 0.7, 1.0, 1.2)
    others, moves = unequal_prompts(10**6, 20_000)
    truth = [float(sigmoid(others + moves * stops_at_1(weight)).mean()) for weight in at]
    missed, errors = [], []
    for seed in range(60):
        base, moved = unequal_prompts(seed, 300)
        random = np.random.default_rng(1000 + seed)
        prompts, noise = np.repeat(np.arange(300), 2), random.logistic(size=600)
        parts = [(0.0, np.arange(600), noise)]
        first = 0
        for weight, count in TRIED.items():
            rows = (first + np.arange(count)) % 600
            first += count
            kept = random.random(count) < math.exp(-abs(weight))
            parts.append((weight, rows, np.where(kept, noise[rows], random.logistic(size=count))))
        r = [
            (base[prompts[rows]] + moved[prompts[rows]] * stops_at_1(weight) + u > 0).astype(float)
            for weight, rows, u in parts
        ]
        weights = np.concatenate([np.full(len(rows), weight) for weight, rows, _ in parts])
        rows = np.concatenate([rows for _, rows, _ in parts])
        curve = fit_curve(weights, np.concatenate(r), prompts[rows], rows)
        missed.append(curve.rate(np.array(at)) - truth)
        errors.append(curve.error(np.array(at)))
    moved_off = np.mean(missed, 0) - np.mean(missed, 0)[0]
    assert np.abs(moved_off).max() < 0.024, moved_off  # smoothing takes some of where it stops
    assert np.sqrt(np.square(missed).mean(0)).max() < 0.038
    assert np.std(missed, 0) == pytest.approx(np.mean(errors, 0), rel=0.3), "errors count which prompts were drawn"


def test_few_prompts_take_errors_over_pictures():
    curve = fit_curve(*drawn_curve(0, lambda weight: weight, prompts=2, each=60))
    assert 0.01 < curve.error(0.0) < 0.08


def test_the_curve_stops_where_it_turns():
    def logit(weight):
        return -0.5 + 3.0 * weight - 2.2 * weight**2

    curve = fit_curve(*drawn_curve(1, logit, prompts=200))
    assert curve.high == pytest.approx(3.0 / 4.4, abs=0.12)
    assert curve.weight(0.99) == curve.high and curve.weight(1e-4) == curve.low
    rates = curve.rate(np.linspace(curve.low, curve.high, 50))
    assert (np.diff(rates) > 0).all()
    falling = fit_curve(*drawn_curve(2, lambda weight: -2.0 * weight, prompts=200))
    assert (falling.low, falling.high) == (0.0, 0.0)


def test_the_curve_is_inverted():
    curve = fit_curve(*drawn_curve(3, lambda weight: -1 + 2 * weight))
    for weight in (-0.5, -0.1, 0.0, 0.3, 1.2):
        assert curve.weight(float(curve.rate(weight))) == pytest.approx(weight, abs=1e-3)


@pytest.mark.parametrize("liked", [0.0, 1.0])
def test_a_judge_who_says_one_thing_only_breaks_no_curve(liked):
    weights, r, groups = drawn_curve(0, lambda weight: weight)
    curve = fit_curve(weights, np.full_like(r, liked), groups)
    assert float(curve.rate(0.5)) == pytest.approx(liked, abs=0.01) and np.isfinite(curve.error(0.5))


def test_mean_and_spread_between_prompts_are_unbiased():
    means, errors, spreads = [], [], []
    for seed in range(400):
        random = np.random.default_rng(seed)
        rates = random.beta(3, 7, 40)
        groups = np.repeat(np.arange(40), 6)
        mean, error, spread = rate_between_prompts((random.random(240) < rates[groups]).astype(float), groups)
        means.append(mean)
        errors.append(error)
        spreads.append(spread)
    true_spread = np.sqrt(3 * 7 / (10**2 * 11))
    assert np.mean(means) == pytest.approx(0.3, abs=0.005)
    assert np.std(means) == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=0.1)
    assert np.sqrt(np.mean(np.square(spreads))) == pytest.approx(true_spread, rel=0.05)


def test_prompts_that_are_alike_have_no_spread_and_one_prompt_none_at_all():
    random = np.random.default_rng(0)
    r, groups = (random.random(4000) < 0.3).astype(float), np.repeat(np.arange(40), 100)
    assert rate_between_prompts(r, groups)[2] < 0.03
    mean, error, spread = rate_between_prompts(r, np.zeros(4000, dtype=int))
    assert mean == r.mean() and error == pytest.approx((0.21 / 4000) ** 0.5, rel=0.05) and spread == 0.0
    assert rate_between_prompts(r[:40], np.arange(40))[2] == 0.0, "one picture of each prompt says nothing about it"


# --- how far alpha is trusted ---

LEVELS = np.array([0.1, 0.5, 0.9])


def states(seed, slope, offsets, count=1500, rate=0.3):
    """States whose alpha's logit has to be taken times `slope`, after the offset, to be right."""
    random = np.random.default_rng(seed)
    centre = np.log(rate / (1 - rate))
    r = (random.random(count) < rate).astype(float)
    levels, alpha = [], []
    for level, offset in zip(LEVELS, offsets, strict=True):
        d = 1.5 * (1 - level) + 0.3
        right = centre + (r - 0.5) * d**2 + d * random.standard_normal(count)
        levels.append(np.full(count, level))
        alpha.append(sigmoid((right - (1 - slope) * centre) / slope - offset))
    return np.concatenate(levels), np.concatenate(alpha), np.tile(r, 3), np.tile(np.arange(count), 3), rate


@pytest.mark.parametrize("slope", [0.4, 0.8, 1.0])
def test_slope_and_offsets_are_found(slope):
    offsets = (0.0, 0.4, -0.5)
    found = [fit_trust(*states(seed, slope, offsets)) for seed in range(20)]
    assert np.mean([trust.slope for trust in found]) == pytest.approx(slope, abs=0.03)
    if slope < 1:
        spread = np.std([trust.slope for trust in found])
        assert spread == pytest.approx(np.mean([trust.error for trust in found]), rel=0.5)
    for place, (level, offset) in enumerate(zip(LEVELS, offsets, strict=True)):
        assert found[0].offsets[place][0] == level
        assert np.mean([trust.offsets[place][1] for trust in found]) == pytest.approx(offset, abs=0.08)


def test_a_timid_head_keeps_slope_1_and_its_mean_is_still_mended():
    """Its logit should be stretched; as slopes end at 1, only the mean can be made right."""
    levels, alpha, r, groups, rate = states(0, 2.0, (0.8, 0.8, 0.8))
    trust = fit_trust(levels, alpha, r, groups, rate)
    assert trust.slope == 1.0
    for level, offset in trust.offsets:
        at = levels == level
        mended = sigmoid(np.log(alpha[at] / (1 - alpha[at])) + offset)
        assert mended.mean() == pytest.approx(r[at].mean(), abs=0.01)


def test_a_head_that_knows_nothing_of_these_pictures_is_not_trusted():
    levels, alpha, r, groups, rate = states(0, 1.0, (0, 0, 0))
    strangers = np.random.default_rng(1).permutation(1500)
    for shuffled in (np.concatenate([alpha[levels == level][strangers] for level in LEVELS]), 1 - alpha):
        assert fit_trust(levels, shuffled, r, groups, rate).slope < 0.05


# --- from scores to r ---


def test_every_way_of_liking_is_on_the_scale_of_the_base_model():
    base = np.array([1.0, 2.0, 3.0, 4.0, np.nan])
    new = np.array([0.0, 2.0, 2.5, 9.0, np.nan])
    z = (new - 2.5) / np.std([1, 2, 3, 4])
    cases = {
        "raw": np.clip(new, 0, 1),
        "likes": np.clip(new, 0, 1),
        "threshold": [0, 0, 1, 1, np.nan],
        "sigmoid": sigmoid(z),
        "group": 0.5 + np.clip(z, -5, 5) / 10,
        "rank": [0, 0.375, 0.5, 1, np.nan],
    }
    for method, expected in cases.items():
        one_prompt = np.zeros(5)
        found = unit(BaseScale(base, one_prompt, method, 2.5)(new, one_prompt), method)
        np.testing.assert_allclose(found, expected, err_msg=method)


@pytest.mark.parametrize("method", ["raw", "threshold", "sigmoid", "rank", "exponential"])
@pytest.mark.parametrize("mix", ["mean", "product"])
def test_a_judge_gives_the_base_model_s_pictures_the_r_of_the_run(method, mix):
    random = np.random.default_rng(0)
    scores = {"a": random.random(50), "b": random.random(50) ** 2}
    weights = {"a": 3.0, "b": 1.0}
    drawn = Drawn(np.zeros((50, 2, 2, 3), np.uint8), torch.zeros(50, 1), np.zeros((0, 50)), np.zeros(0))
    rewards = {name: lambda pictures, prompts, name=name: scores[name] for name in scores}
    judge = RewardJudge(["x"], rewards, weights, method, 0.4, mix)
    expected = optimality(scores, method, weights=weights, at=0.4, mix=mix).r
    np.testing.assert_allclose(judge(drawn, [0] * 50), expected, atol=1e-9)
    scores["a"] = scores["a"] + 0.3
    assert judge(drawn, [0] * 50).mean() > expected.mean() + 0.02, "the scale is kept"


def test_an_exponential_judge_stays_one_where_the_base_model_s_pictures_are_all_or_nothing():
    drawn = Drawn(np.zeros((4, 2, 2, 3), np.uint8), torch.zeros(4, 1), np.zeros((0, 4)), np.zeros(0))
    scores = np.array([0.0, 0.0, 0.0, 1.0])
    judge = RewardJudge(["x"], {"read": lambda pictures, prompts: scores}, {}, "exponential")
    np.testing.assert_allclose(judge(drawn, [0] * 4), np.exp(4 * (scores - 1)))
    scores[:] = [0.25, 0.5, 0.75, 1.0]
    np.testing.assert_allclose(judge(drawn, [0] * 4), np.exp(4 * (scores - 1)))


def test_a_judge_without_most_scores_is_refused():
    drawn = Drawn(np.zeros((10, 2, 2, 3), np.uint8), torch.zeros(10, 1), np.zeros((0, 10)), np.zeros(0))
    scores = np.array([np.nan] * 4 + [np.inf] + [0.5] * 5)
    judge = RewardJudge(["x"], {"moody": lambda pictures, prompts: scores}, {})
    assert np.isnan(judge(drawn, [0] * 10)).tolist() == [True] * 5 + [False] * 5
    scores[5] = np.nan
    with pytest.raises(RewardError, match="'moody' has no score for 6 of 10 held-out pictures, expected at most 50%"):
        judge(drawn, [0] * 10)


# --- the budget ---


def test_forwards_are_counted():
    offline = config(steps=10, batch=8, head_batch=4, pool_size=24, held_out_size=12, pool_steps=5)
    assert forwards_of(offline) == 10 * 8 * 3 + 10 * 4 + (24 + 12) * 5
    assert forwards_of(config(guidance_scale=3.0, steps=10, batch=8, head_batch=4, pool_steps=5)) == (
        10 * 8 * 3 + 10 * 4 + 36 * 10
    )
    policy = config(objective="policy", steps=10, batch=8, pool_steps=5)
    assert forwards_of(policy) == 10 * 8 * 4 + 24 * 5
    rounds = {"rounds": 3, "round_steps": 2, "round_prompts": 2, "group_size": 4, "batch": 8, "pool_steps": 2}
    online = type(offline).from_mapping({**ONLINE, **rounds})
    assert forwards_of(online) == 6 * 8 * 5 + 3 * 2 * 4 * 2
    likes = {name: value for name, value in SMALL.items() if name not in ("reward", "prompts", "optimality")}
    folder = type(offline).from_mapping({**likes, "data": "somewhere", "objective": "positive", "steps": 10})
    assert forwards_of(folder) == 10 * 8 * 3 + 10 * 8, "nothing is drawn for its pool"


def test_a_tenth_of_them_is_for_the_dial():
    assert calibration_pictures(config(steps=1000, batch=8, head_batch=8, pool_steps=8)) == (32000 + 288) // 80
    assert calibration_pictures(config(steps=10**6)) == MOST
    assert calibration_pictures(config(steps=10**6, calibration_pictures=0)) == 0
    assert calibration_pictures(config(calibration_pictures=5000)) == 5000
