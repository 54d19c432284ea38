"""From scores to r: every method by hand, several rewards, missing scores, and groups that teach nothing."""

import numpy as np
import pytest

from nft_pipeline.training.data.optimality import BY_CARD, LEAST, OptimalityError, by_prompt, optimality
from nft_pipeline.training.learn.objective import Objective
from nft_pipeline.training.learn.old_model import Tilt, decay_after
from nft_pipeline.training.settings.choices import METHODS

SCORES = np.array([1.0, 2.0, 3.0, 10.0, 10.0, 16.0])
GROUPS = np.array([0, 0, 0, 1, 1, 1])


def r_of(method, scores=SCORES, **kwargs):
    return optimality({"mine": scores}, method, **kwargs).r


def test_the_authors_normalisation_by_hand():
    deviation = np.std(SCORES) + 1e-4
    by_hand = [0.5 + a / deviation / 10 for a in (-1, 0, 1, -2, -2, 4)]
    assert r_of("group", groups=GROUPS) == pytest.approx(by_hand)
    huge = np.array([0.0] * 99 + [1e6])
    assert r_of("group", huge)[-1] == 1.0  # the advantage is clipped at 5


def test_ranks_are_shares_of_the_group_with_ties_half():
    assert r_of("rank", groups=GROUPS) == pytest.approx([1 / 6, 3 / 6, 5 / 6, 2 / 6, 2 / 6, 5 / 6])
    assert r_of("rank") == pytest.approx([1 / 12, 3 / 12, 5 / 12, 8 / 12, 8 / 12, 11 / 12])


def test_the_other_methods_by_hand():
    z = (SCORES - SCORES.mean()) / SCORES.std()
    assert r_of("sigmoid") == pytest.approx(1 / (1 + np.exp(-z)))
    assert r_of("threshold", at=3.0).tolist() == [0, 0, 1, 1, 1, 1]
    assert r_of("raw", SCORES / 16) == pytest.approx(SCORES / 16)
    assert r_of("likes", np.array([0.0, 1.0])).tolist() == [0.0, 1.0]
    assert r_of("exponential", SCORES / 16) == pytest.approx(np.exp(4 * (SCORES / 16 - 1)))
    assert r_of("exponential", SCORES / 16, at=2.0) == pytest.approx(np.exp(2 * (SCORES / 16 - 1)))


def test_the_top_share_by_hand():
    # Each of three places holds a third, so a share of 0.5 takes the first whole and half of the second.
    assert r_of("top", groups=GROUPS, at=0.5) == pytest.approx([0, 0.5, 1, 0.25, 0.25, 1])
    assert r_of("top", np.arange(10.0)) == pytest.approx([0] * 7 + [1] * 3)  # the default share is 0.3
    assert r_of("top", np.arange(10.0), at=0.25) == pytest.approx([0] * 7 + [0.5, 1, 1])


def test_the_top_share_is_the_same_in_every_group_whatever_is_tied_or_flat():
    scores, groups = np.random.default_rng(0).integers(0, 4, 70).astype(float), np.arange(70) // 7
    scores[:7] = 2.0
    r = r_of("top", scores, groups=groups)
    assert r.reshape(10, 7).mean(1) == pytest.approx([0.3] * 10)
    assert r[:7] == pytest.approx([0.3] * 7)  # nothing to tell apart, and no prior to spoil


def test_the_top_share_of_two_rewards_is_that_of_their_sum():
    one, two = np.random.default_rng(1).random((2, 40))
    r = optimality({"a": one, "b": 100 * two}, "top", at=0.25).r
    best = np.argsort(one / one.std() + two / two.std())[-10:]
    assert set(np.flatnonzero(r)) == set(best)


def test_prompts_with_few_pictures_are_compared_together():
    prompt = np.array([0, 0, 1, 2, 2, 2, 2, 3])
    assert LEAST == 4 and by_prompt(prompt).tolist() == [-1, -1, -1, 2, 2, 2, 2, -1]


@pytest.mark.parametrize("method", ["group", "rank", "sigmoid", "top"])
def test_a_reward_in_another_unit_weighs_the_same(method):
    rng = np.random.default_rng(0)
    one, two = rng.random(40), rng.random(40)
    plain = optimality({"a": one, "b": two}, method).r
    assert optimality({"a": one, "b": 1000 * two + 7}, method).r == pytest.approx(plain, abs=1e-3)
    heavy = optimality({"a": one, "b": two}, method, weights={"a": 1.0, "b": 9.0}).r
    assert np.corrcoef(heavy, two)[0, 1] > np.corrcoef(plain, two)[0, 1]


def test_a_product_asks_for_all_rewards_at_once():
    liked, drawn = np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 1.0, 0.0, 1.0])
    pair = {"a": liked, "b": drawn}
    assert optimality(pair, "raw", mix="product").r.tolist() == [0, 0, 0, 1]
    assert optimality(pair, "raw").r.tolist() == [0, 0.5, 0.5, 1]
    graded = {"a": SCORES, "b": SCORES[::-1]}
    for method in ("rank", "sigmoid"):
        each = [r_of(method, scores) for scores in graded.values()]
        assert optimality(graded, method, mix="product").r == pytest.approx(each[0] * each[1])
    raw, steep = (optimality({"a": SCORES / 16, "b": 1 - SCORES / 20}, method, mix="product").r for method in BY_CARD)
    assert steep == pytest.approx(np.exp(4 * (raw - 1))), "the exponential of the product, not the product of both"
    missing = optimality({"a": np.append(np.ones(19), np.nan), "b": np.full(20, 0.5)}, "raw", mix="product")
    assert missing.dropped == 1 and missing.r[:19] == pytest.approx(np.full(19, 0.5))


def test_missing_scores_drop_their_sample_and_too_many_stop_the_run():
    scores = np.arange(20, dtype=float) / 20
    scores[[3, 7]] = np.nan, np.inf
    found = optimality({"mine": scores}, "raw")
    assert found.dropped == 2 and np.isnan(found.r[[3, 7]]).all() and "2 of 20 dropped" in found.describe()
    assert found.r[found.kept] == pytest.approx(scores[found.kept])
    scores[8] = np.nan
    with pytest.raises(OptimalityError, match=r"3 of 20 samples have no score .*'mine' 3.*at most 10%"):
        optimality({"mine": scores}, "raw")


def test_groups_that_are_all_alike_are_counted():
    scores = np.array([1.0, 1.0, 1.0, 0.0, 1.0, 0.5])
    found = optimality({"mine": scores}, "group", groups=GROUPS)
    assert (found.flat_groups, found.groups) == (1, 2)
    assert found.r[:3] == pytest.approx([0.5] * 3) and "1 of 2 groups all alike" in found.describe()


@pytest.mark.parametrize("method", ["raw", "sigmoid"])
def test_groups_that_are_all_alike_still_teach_where_groups_are_not_compared(method):
    found = optimality({"mine": np.array([1.0, 1.0, 1.0, 0.0, 1.0, 0.5])}, method, groups=GROUPS)
    assert found.flat_groups == 0 and "alike" not in found.describe()


@pytest.mark.parametrize("method", METHODS)
def test_r_is_always_a_probability(method):
    rng = np.random.default_rng(1)
    in_unit = method in ("raw", "likes", "exponential")
    scores = rng.integers(0, 2, 50).astype(float) if in_unit else 100 * rng.standard_normal(50)
    r = r_of(method, scores, at=0.0 if method == "threshold" else None, groups=np.arange(50) // 5)
    assert r.min() >= 0 and r.max() <= 1 and r.std() > 0


@pytest.mark.parametrize(
    ("method", "scores", "phrase"),
    [
        ("raw", [0.5, 1.5], "gave 1.5 .* expects scores in \\[0, 1\\]"),
        ("likes", [0.0, 0.5], "gave 0.5 .* expects 0 or 1"),
        ("exponential", [0.5, 1.5], "gave 1.5 .* expects scores in \\[0, 1\\]"),
        ("threshold", [0.0, 0.5], "optimality_at"),
        ("raw", [], "0 of 0 samples"),
    ],
)
def test_scores_a_method_cannot_take_are_named(method, scores, phrase):
    with pytest.raises(OptimalityError, match=phrase):
        r_of(method, np.array(scores))


def test_the_schedules_of_old():
    assert decay_after("copy", 500) == 0 and decay_after(0.9, 1) == decay_after(0.9, 500) == 0.9
    assert [decay_after("ramp", step) for step in (0, 100, 500, 9000)] == pytest.approx([0, 0.1, 0.5, 0.5])
    assert [decay_after("late_ramp", step) for step in (74, 75, 100, 9000)] == pytest.approx([0, 0, 0.1875, 0.999])


def test_the_authors_sum_raw_scores_before_they_normalise_them():
    rng = np.random.default_rng(3)
    scores = {"wide": 100 * rng.normal(size=40), "narrow": rng.normal(size=40)}
    weights, groups = {"wide": 1.0, "narrow": 2.0}, np.repeat(np.arange(4), 10)
    summed = optimality(scores, "group", weights=weights, groups=groups, sum_first=True).r
    total = scores["wide"] + 2 * scores["narrow"]
    means = np.array([total[groups == group].mean() for group in groups])
    assert summed == pytest.approx(0.5 + np.clip((total - means) / (total.std() + 1e-4), -5, 5) / 10)
    assert np.abs(summed - optimality(scores, "group", weights=weights, groups=groups).r).max() > 0.02


def test_the_tilt_that_is_tracked_is_m8s_and_a_slow_old_lags():
    anchored, tilt = Objective("policy", 2.0, eta0=6.0), Tilt()
    for _ in range(10):
        tilt = tilt.after_round(anchored, 0.0)
    assert tilt.theta == tilt.old == pytest.approx(6 * (1 - 0.75**10))
    slow = Tilt().after_round(Objective("policy", 2.0), 0.5).after_round(Objective("policy", 2.0), 0.5)
    assert (slow.theta, slow.old) == (3.0, 2.0)
