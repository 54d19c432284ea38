"""The shapes world: grammar, drawing, captions."""

from collections import Counter

import numpy as np
import pytest

from nft_pipeline.training.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    GRID,
    RADII,
    SHAPES,
    SIZE,
    Noun,
    Prompt,
    caption,
    change_one,
    coverage,
    describe,
    draw,
    drop_attributes,
    named_attributes,
    sample_scene,
    scene_for,
)


def test_prompts_round_trip_through_their_text():
    rng = np.random.default_rng(0)
    for _ in range(500):
        prompt = drop_attributes(describe(sample_scene(rng)), rng)
        assert Prompt.parse(prompt.text()) == prompt
    assert Prompt.parse("") == Prompt()
    assert Prompt.parse("an orange circle").text() == "an orange circle"
    assert Prompt.parse("A circle left of a cross.") == Prompt((Noun("circle"), Noun("cross")), "left of")


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("a pink circle", "'pink' is not a word the shapes model knows"),
        ("a circle on mars", "'mars' is not a word"),
        ("two circle", "'circle' is not a word"),
        ("circle", "'circle' is not a word"),
        ("a", "a noun phrase is missing"),
        ("a circle left of", "a noun phrase is missing"),
        ("two circles and a cross", "each may only be one thing"),
        ("a small red blue circle", "'blue' is one attribute too many"),
    ],
)
def test_a_prompt_outside_the_grammar_is_a_named_error(text, phrase):
    with pytest.raises(ValueError, match=phrase):
        Prompt.parse(text)


@pytest.mark.parametrize("shape", SHAPES)
def test_things_are_drawn_where_and_as_large_as_they_say(shape):
    cover = coverage(shape, 30.25, 25.5, 9.5)
    rows, columns = np.flatnonzero(cover.max(1) > 0.5), np.flatnonzero(cover.max(0) > 0.5)
    assert abs((rows[0] + rows[-1] + 1) / 2 - 25.5) <= 1.0
    assert abs((columns[0] + columns[-1] + 1) / 2 - 30.25) <= 0.75
    assert abs((columns[-1] + 1 - columns[0]) / 2 - 9.5) <= 0.75
    area = {"circle": np.pi, "square": 4.0, "triangle": 2.0, "cross": 4 * 5 / 9, "ring": np.pi * 0.75}[shape] * 9.5**2
    assert cover.sum() == pytest.approx(area, rel=0.03)


def test_things_never_touch_each_other_or_the_edge():
    rng = np.random.default_rng(1)
    for _ in range(300):
        scene = sample_scene(rng)
        total = sum(coverage(thing.shape, thing.x, thing.y, thing.r) for thing in scene.things)
        assert total.max() <= 1.0 + 1e-9
        assert max(total[0].max(), total[-1].max(), total[:, 0].max(), total[:, -1].max()) == 0.0


@pytest.mark.parametrize("stray", [0, 1])
def test_centres_stand_on_the_grid_and_sizes_are_two(stray):
    rng = np.random.default_rng(6)
    scenes = [sample_scene(rng, stray) for _ in range(400)]
    things = [thing for scene in scenes for thing in scene.things]
    assert all(thing.x % GRID == thing.y % GRID == 0 and thing.r == RADII[thing.size] for thing in things)
    assert {thing.x for thing in things} == {16, 32, 48} == {thing.y for thing in things}
    alone = {(scene.things[0].x, scene.things[0].y) for scene in scenes if len(scene.things) == 1}
    assert len(alone) == (1 if stray == 0 else 9)


def test_a_picture_shows_the_palette():
    scene = scene_for(Prompt((Noun("square", 1, "blue", "large"),), background="gray"), np.random.default_rng(0))
    picture = draw(scene)
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    colours = Counter(map(tuple, picture.reshape(-1, 3).tolist()))
    assert {colour for colour, _ in colours.most_common(2)} == {COLOURS["blue"], BACKGROUNDS["gray"]}


def test_open_attributes_are_spread_evenly():
    rng = np.random.default_rng(2)
    colours = Counter(scene_for(Prompt((Noun("circle"),)), rng).things[0].colour for _ in range(3000))
    assert set(colours) == set(COLOURS)
    assert all(abs(count - 500) < 100 for count in colours.values())


def test_change_one_changes_exactly_one_named_attribute():
    rng = np.random.default_rng(3)
    for _ in range(300):
        prompt = drop_attributes(describe(sample_scene(rng)), rng)
        other = change_one(prompt, rng)
        before, after = (
            [getattr(p if a in ("relation", "background") else p.nouns[i], a) for a, i in named_attributes(prompt)]
            for p in (prompt, other)
        )
        assert sum(x != y for x, y in zip(before, after, strict=True)) == 1


def test_captions_are_dropped_wrong_and_empty_as_often_as_asked():
    rng = np.random.default_rng(4)
    scenes = [sample_scene(rng) for _ in range(2000)]
    captions = [caption(scene, rng, keep=1.0, wrong=0.3, empty=0.1) for scene in scenes]
    empty = sum(not prompt.nouns for prompt in captions)
    truths = [{describe(scene).text(), drop_attributes(describe(scene), rng, 1.0).text()} for scene in scenes]
    assert 150 < empty < 250
    full = [(prompt, scene) for prompt, scene in zip(captions, scenes, strict=True) if prompt.nouns]
    swapped = sum(len(named_attributes(prompt)) == len(named_attributes(describe(scene))) for prompt, scene in full)
    assert swapped == len(full)  # keep=1 names everything
    assert sum(p.text() not in truth for p, truth in zip(captions, truths, strict=True) if p.nouns) > 400
