"""ShapesEval: full marks on drawn truth, none on drawn lies."""

import numpy as np
import pytest

from nft_pipeline.training.rewards.find import find_reward
from nft_pipeline.training.shapes.prompts import (
    shapes_eval_held_out,
    shapes_eval_training_prompts,
    warm_prompts,
    warm_prompts_held_out,
)
from nft_pipeline.training.shapes.score import CATEGORIES, judge, look, shapes_eval_prompts
from nft_pipeline.training.shapes.world import Noun, Prompt, change_one, describe, draw, sample_scene, scene_for

N = 600


def test_drawn_truth_scores_everything_right():
    rng = np.random.default_rng(10)
    for _ in range(N):
        scene = sample_scene(rng)
        judgement = judge(draw(scene), describe(scene))
        assert judgement.correct and judgement.score == 1.0, (describe(scene).text(), judgement)
        assert judgement.quality > 0.85


def test_drawn_truth_of_every_category_scores_everything_right():
    rng = np.random.default_rng(11)
    for category, prompt in shapes_eval_prompts(N, seed=5):
        assert judge(draw(scene_for(prompt, rng)), prompt).correct, (category, prompt.text())


def test_one_changed_attribute_is_seen_in_98_of_100_pictures():
    rng = np.random.default_rng(12)
    passed = 0
    for _ in range(N):
        prompt = describe(sample_scene(rng))
        passed += judge(draw(scene_for(change_one(prompt, rng), rng)), prompt).correct
    assert passed / N < 0.02


def test_score_is_the_fraction_of_named_attributes_that_are_right():
    rng = np.random.default_rng(13)
    picture = draw(scene_for(Prompt((Noun("circle", 1, "red", "large"),), background="white"), rng))
    judgement = judge(picture, Prompt((Noun("circle", 1, "blue", "large"),), background="black"))
    assert judgement.right == {"count": True, "shape": True, "colour": False, "size": True, "background": False}
    assert judgement.score == pytest.approx(3 / 5) and not judgement.correct


def test_two_nouns_match_in_either_order_but_their_relation_does_not():
    rng = np.random.default_rng(14)
    picture = draw(scene_for(Prompt((Noun("circle"), Noun("cross")), "left of"), rng))
    assert judge(picture, Prompt((Noun("cross"), Noun("circle")))).correct
    assert judge(picture, Prompt((Noun("cross"), Noun("circle")), "right of")).correct
    assert not judge(picture, Prompt((Noun("circle"), Noun("cross")), "right of")).correct
    assert not judge(picture, Prompt((Noun("circle"), Noun("cross")), "above")).correct


def test_an_empty_picture_is_wrong_and_of_no_quality():
    blank = np.full((64, 64, 3), 245, np.uint8)
    judgement = judge(blank, Prompt((Noun("circle"), Noun("cross")), "left of", "white"))
    assert judgement.right.pop("background") and not any(judgement.right.values())
    assert judgement.quality == 0.0 and look(blank) == ("white", ())


def test_a_picture_of_another_size_is_a_named_error():
    with pytest.raises(ValueError, match=r"picture is float64 \(64, 64, 3\), expected uint8 \(64, 64, 3\)"):
        look(np.zeros((64, 64, 3)))
    with pytest.raises(ValueError, match=r"picture is uint8 \(32, 32, 3\)"):
        look(np.zeros((32, 32, 3), np.uint8))


def test_warm_is_red_or_orange_and_everything_counts():
    rng = np.random.default_rng(15)

    def picture(*nouns):
        return draw(scene_for(Prompt(tuple(nouns)), rng))

    pictures = np.stack(
        [
            picture(Noun("circle", 1, "red")),
            picture(Noun("ring", 3, "orange")),
            picture(Noun("circle", 1, "red"), Noun("cross", 1, "orange")),
            picture(Noun("circle", 1, "red"), Noun("cross", 1, "yellow")),
            picture(Noun("square", 1, "purple")),
            np.full((64, 64, 3), 15, np.uint8),
        ]
    )
    assert find_reward("shapes_warm")(pictures, [""] * 6).tolist() == [1, 1, 1, 0, 0, 0]


def test_shapes_eval_reward_judges_each_picture_against_its_own_prompt():
    rng = np.random.default_rng(16)
    pictures = np.stack([draw(scene_for(Prompt((Noun(shape),)), rng)) for shape in ("circle", "cross")])
    assert find_reward("shapes_eval")(pictures, ["a circle", "a circle"]).tolist() == [1, 0]


def test_held_out_prompts_are_held_out():
    assert not set(warm_prompts()) & set(warm_prompts_held_out())
    assert len(warm_prompts()) == 45 and len(warm_prompts_held_out()) == 15
    training = shapes_eval_training_prompts(600)
    assert not set(training) & set(shapes_eval_held_out())
    categories = {prompt.text(): category for category, prompt in shapes_eval_prompts(20_000, seed=2)}
    assert [categories.get(text, category) for text, category in zip(training, 100 * CATEGORIES, strict=True)] == [
        *100 * CATEGORIES
    ]
    assert [category for category, _ in shapes_eval_prompts(12, seed=0)] == [*CATEGORIES, *CATEGORIES]
