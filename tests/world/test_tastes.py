"""The tastes and prompts of tests/benchmarks/dial.py, and its arithmetic, on cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.dial_numbers import beside_rival, by_prompt, promised_by_prompt, replicates
from benchmarks.tastes import (
    BY_PROMPT,
    CALIBRATION,
    MEASUREMENT,
    NEAR,
    RATES,
    TRAINING,
    Taste,
    calibration_prompts,
    candidates,
    draw_tastes,
    measurement_prompts,
    prompts_share,
    training_prompts,
)

from nft_pipeline.training.rewards.pictures import to_pil
from nft_pipeline.training.shapes.score import look
from nft_pipeline.training.shapes.world import Prompt, Scene, Thing, draw, scene_for


def test_the_three_lists_of_prompts_share_no_text_and_are_of_the_grammar() -> None:
    lists = training_prompts(), calibration_prompts(), measurement_prompts()
    assert [len(texts) for texts in lists] == [TRAINING, CALIBRATION, MEASUREMENT]
    texts = [text for some in lists for text in some]
    assert len(set(texts)) == len(texts)
    assert all(Prompt.parse(text).text() == text for text in texts)


def test_the_rule_draws_the_same_six_tastes_each_time_near_the_wanted_rates() -> None:
    rng, texts = np.random.default_rng(0), training_prompts()
    prompt = np.arange(6 * len(texts)) % len(texts)
    looks = [look(draw(scene_for(Prompt.parse(texts[i]), rng))) for i in prompt]
    tastes = draw_tastes(looks, prompt)
    assert tastes == draw_tastes(looks, prompt)
    assert [candidates()[words].relational for words in tastes] == [False] * 4 + [True] * 2
    assert len({candidates()[words].kind for words in tastes}) == 6
    for words, wanted in zip(tastes, RATES, strict=False):
        assert wanted / NEAR <= tastes[words] <= wanted * NEAR
        has = np.array([candidates()[words].holds(seen) for seen in looks], float)
        assert has.mean() == tastes[words]
        assert prompts_share(has, prompt) <= BY_PROMPT
    assert draw_tastes(looks, prompt, seed=3) != tastes


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("everything is red or blue", 1),
        ("everything is blue", 0),
        ("something is blue", 1),
        ("the background is gray", 1),
        ("the background is white and something is blue", 0),
        ("a large thing is left of a small one", 1),
        ("a large thing is right of a small one", 0),
        ("a warm thing is left of a cold one", 1),
        ("two things have the same size", 0),
    ],
)
def test_a_taste_says_what_is_in_the_picture(words: str, expected: int) -> None:
    things = Thing("ring", "red", "large", 16, 32, 12), Thing("cross", "blue", "small", 48, 32, 8)
    picture = draw(Scene(things, "gray", "left of"))
    assert Taste(words)(to_pil(picture[None]), [""]).scores.tolist() == [expected]


def test_the_prompts_share_of_the_variance_is_all_or_nothing_where_it_should_be() -> None:
    prompt = np.arange(4000) % 40
    assert prompts_share((prompt < 20).astype(float), prompt) == 1
    assert prompts_share((np.random.default_rng(0).random(4000) < 0.3).astype(float), prompt) < 0.02


@pytest.mark.parametrize("tilt", [-2.0, 1.0])
def test_the_promise_is_that_of_each_prompt_and_few_pictures_do_not_bend_it(tilt: float) -> None:
    rng = np.random.default_rng(0)
    p = rng.beta(0.5, 1.5, 4000)
    true = float(np.mean(p * np.exp(tilt) / (1 - p + p * np.exp(tilt))))
    liked = rng.binomial(8, p) / 8
    assert promised_by_prompt(liked, 8, tilt).mean() == pytest.approx(true, abs=0.01)
    naive = float(np.mean(liked * np.exp(tilt) / (1 - liked + liked * np.exp(tilt))))
    assert abs(naive - true) > 0.01


def test_nothing_is_promised_away_at_tilt_0_and_equal_prompts_follow_the_formula() -> None:
    liked = np.random.default_rng(1).binomial(100, 0.25, 2000) / 100
    assert promised_by_prompt(liked, 100, 0.0).mean() == pytest.approx(liked.mean(), abs=1e-3)
    assert promised_by_prompt(liked, 100, 2.0).mean() == pytest.approx(np.e**2 / (3 + np.e**2), abs=5e-3)


def test_ours_is_compared_with_the_rival_at_our_own_rate() -> None:
    def point(rate: float, quality: float) -> dict[str, np.ndarray]:
        return {"liked": np.full(4, rate), **{name: np.full(4, quality) for name in ("quality", "right", "diversity")}}

    rivals = [point(0.2, 0.9), point(0.4, 0.8), point(0.8, 0.6)]
    beside = beside_rival(point(0.6, 0.75), rivals, replicates(4))
    assert beside is not None
    assert beside["quality"] == pytest.approx(0.05)
    assert beside_rival(point(0.9, 0.75), rivals, replicates(4)) is None


def test_pictures_go_to_the_prompts_in_turn() -> None:
    point = {name: [0, 1, 1, 0, 1, 0] for name in ("liked", "quality", "right", "diversity")}
    assert by_prompt(point, 3)["liked"].tolist() == [0, 1, 0.5]
