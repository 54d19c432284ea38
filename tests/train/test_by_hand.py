"""A calibration that a person judges: the sweep hides its weights, and the ratings become a dial."""

import json

import numpy as np
import pytest

from helpers.dialled import KnownDraws
from nft_pipeline.files.picture_list import read_rows, update_rows
from nft_pipeline.training.dial.by_hand import (
    PICTURES,
    WEIGHTS,
    WEIGHTS_FILE,
    NotRated,
    calibrate_by_hand,
    draw_for_rating,
)


@pytest.fixture
def draws():
    known = KnownDraws([0.3] * 20, lambda weight, mode, slope: 3.0 * weight)
    known.base.call = {"num_inference_steps": 4}
    return known


def rate_truly(folder, draws):
    """Rate as the world would: by the true share of each weight, evenly."""
    weights = json.loads((folder / WEIGHTS_FILE).read_text())
    for weight in WEIGHTS:
        names = sorted(name for name, entry in weights.items() if entry == weight)
        liked = round(draws.true_rate(weight) * len(names))
        update_rows(folder, {name: {"liked": place < liked} for place, name in enumerate(names)})


def test_the_sweep_has_every_weight_alike_and_does_not_show_it(draws, tmp_path):
    folder = tmp_path / "sweep"
    assert draw_for_rating(draws, folder) == PICTURES
    weights = json.loads((folder / WEIGHTS_FILE).read_text())
    assert sorted(weights.values()) == sorted(WEIGHTS * (PICTURES // len(WEIGHTS)))
    by_name = [weights[name] for name in sorted(weights)]
    assert by_name != sorted(by_name) and {row["prompt"] for row in read_rows(folder)} <= set(draws.texts)
    assert all(set(row) == {"image", "prompt"} for row in read_rows(folder))


def test_ratings_become_a_dial_that_says_who_judged(draws, tmp_path):
    draw_for_rating(draws, tmp_path / "sweep")
    rate_truly(tmp_path / "sweep", draws)
    result = calibrate_by_hand(draws, tmp_path / "sweep")
    dial = result.dial
    assert result.learned and dial.judged_by == "person" and "64 pictures" in dial.judge and dial.note == ""
    assert dial.own.mode == "single" and dial.own.slope == 0 and dial.own.pictures == 48
    at_half = float(np.interp(0.5, dial.own.weights, dial.own.rates))
    assert at_half == pytest.approx(draws.true_rate(0.5), abs=0.12)
    assert max(dial.own.errors) > 0.02  # 64 pictures are few, and the dial says so


def test_pictures_that_are_not_rated_are_counted_with_what_to_do(draws, tmp_path):
    folder = tmp_path / "sweep"
    draw_for_rating(draws, folder)
    rate_truly(folder, draws)
    update_rows(folder, {"000.png": {"liked": None}})
    with pytest.raises(NotRated, match=r"1 of 64 pictures in .* are not rated\. Rate them with diffusion-nft rate"):
        calibrate_by_hand(draws, folder)
    update_rows(folder, {row["image"]: {"liked": True} for row in read_rows(folder)})
    with pytest.raises(NotRated, match="are rated alike, which says nothing about the dial"):
        calibrate_by_hand(draws, folder)
