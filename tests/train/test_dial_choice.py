"""Which way of drawing becomes an adapter's own: plain weight, unless another is surely better at an equal rate."""

import numpy as np
import pytest

from helpers.dialled import sigmoid, tilt_map
from nft_pipeline.training.dial.choose import Way, at_equal_rate, choose_way, two_passes_beyond
from nft_pipeline.training.dial.curve import RateCurve, fit_curve


def a_way(mode="single", slope=0.0, top=0.8, error=0.01, variety=0.0, watched=0.0, seed=0) -> Way:
    """A way whose pictures reach `top`, and are better in variety and in a watched reward by so much."""
    random = np.random.default_rng(seed)
    weights, prompts = np.repeat([0.0, 0.5, 1.0], 120), np.tile(np.arange(30), 12)
    logits = np.log([0.3 / 0.7, top / (1 - top)])
    straight = np.array([logits[0], logits[1] - logits[0]])
    curve = RateCurve(straight, np.eye(2) * error**2, np.zeros(0), 0.0, 1.0, 1.0)
    entry = tilt_map(
        mode=mode, slope=slope, tilts=(0.0, 2.0), weights=(0.0, 1.0), rates=(0.3, top), errors=(0.01, error)
    )
    values = {
        "variety": random.normal(0.3 + variety * weights, 0.05),
        "watched reward": random.normal(0.5 + watched * weights, 0.05),
    }
    return Way(entry, curve, weights, prompts, values)


def test_plain_weight_stays_unless_another_way_is_surely_better():
    plain = a_way()
    cases = {
        "alike": (a_way(slope=0.6, seed=1), False),
        "more varied": (a_way(slope=0.6, variety=0.1, seed=1), True),
        "better watched": (a_way(slope=0.6, watched=0.1, seed=1), True),
        "more varied and worse": (a_way(slope=0.6, variety=0.1, watched=-0.1, seed=1), False),
        "worse": (a_way(slope=0.6, variety=-0.1, seed=1), False),
        "reaches further only": (a_way(slope=0.6, top=0.95, seed=1), False),
    }
    for name, (other, wins) in cases.items():
        best, reason = choose_way([plain, other])
        assert (best is other) == wins, name
        assert ("at equal rate it is better than plain weight" in reason) == wins, name
    assert choose_way([plain])[1] == "one pass, at one weight for all, as LoRA weight is"


def test_two_passes_only_where_they_surely_reach_further():
    plain = a_way()
    for other, goes_on in (
        (a_way("two_pass", top=0.9), True),
        (a_way("two_pass", top=0.83), True),
        (a_way("two_pass", top=0.815, error=0.001), False),
        (a_way("two_pass", top=0.9, error=0.08), False),
        (a_way("two_pass", variety=0.2, watched=0.2), False),
    ):
        assert choose_way([plain, other])[0] is plain, "where one pass reaches as far, two only cost more"
        assert two_passes_beyond(plain, [plain, other]) is (other if goes_on else None)
    assert two_passes_beyond(plain, [plain, a_way(slope=0.6, top=0.95)]) is None
    two = a_way("two_pass")
    assert choose_way([two])[0] is two and two_passes_beyond(two, [two, a_way("two_pass", top=0.9)]) is None


def test_two_passes_are_the_own_way_where_one_learned_nothing():
    nothing, other = a_way(top=0.31), a_way("two_pass", top=0.8)
    best, reason = choose_way([nothing, other])
    assert best is other and reason == "two passes reach 80%, one 31%"


def test_ways_are_compared_where_both_reach_the_same_rate():
    faster = a_way(top=0.95, variety=0.1, seed=1)
    found = at_equal_rate(a_way(top=0.8, variety=0.1), faster)
    mean, error = found["variety"]
    assert mean < 0 and error == pytest.approx(0.006, rel=0.6), "at an equal rate the faster one has less weight"
    again = at_equal_rate(a_way(), a_way(seed=1))["watched reward"]
    assert abs(again[0]) < 3 * again[1]


def test_ways_are_seldom_called_better_by_chance():
    pairs = [[a_way(seed=2 * seed), a_way(slope=0.6, seed=2 * seed + 1)] for seed in range(200)]
    assert sum(choose_way(pair)[0] is pair[1] for pair in pairs) <= 20


def drawn_ways(seed, prompts=64, rate=0.08):
    """Two ways that draw alike: each weight's share of liked pictures and each picture's watched reward are the same in
    truth. Pictures of the second are few, as they are in a calibration."""
    random = np.random.default_rng(seed)
    of_prompt = np.log(rate / (1 - rate)) + random.normal(0, 0.8, prompts)

    def pictures(weight, count):
        groups = np.arange(count) % prompts
        liked = random.random(count) < sigmoid(of_prompt[groups] + 2 * weight)
        return np.full(count, weight), groups, liked.astype(float), random.normal(0.8 - 0.5 * weight, 0.1, count)

    base, ways = pictures(0.0, 1216), []
    for slope, count in ((0.0, 320), (0.2, 64)):
        parts = [base, *(pictures(weight, count) for weight in (0.2, 0.5, 1.0))]
        weights, groups, liked, watched = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        curve = fit_curve(weights, liked, groups)
        ends = {"rates": (float(curve.rate(0.0)), float(curve.rate(curve.high))), "errors": (0.01, 0.03)}
        entry = tilt_map(mode="single", slope=slope, tilts=(0.0, 2.0), weights=(0.0, 1.0), **ends)
        ways.append(Way(entry, curve, weights, groups, {"watched reward": watched}))
    return ways


def test_ways_that_draw_alike_are_seldom_called_better_where_few_pictures_tell_how_much_is_liked():
    pairs = [drawn_ways(seed) for seed in range(200)]
    assert sum(choose_way(pair)[0] is pair[1] for pair in pairs) <= 10
    differences = np.array([at_equal_rate(*pair)["watched reward"] for pair in pairs])
    mean, error = differences[:, 0], differences[:, 1]
    assert mean.std() == pytest.approx(np.sqrt((error**2).mean()), rel=0.3)
