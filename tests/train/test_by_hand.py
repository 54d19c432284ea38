"""A calibration that a person judges: the sweep hides its weights, and the ratings become a dial."""

import argparse
import json

import numpy as np
import pytest
import yaml

from helpers.adapters import config_values
from helpers.dialled import KnownDraws
from nft_pipeline.adapters.config import AdapterConfig
from nft_pipeline.files.picture_list import read_rows, update_rows
from nft_pipeline.training.dial.by_hand import (
    PICTURES,
    WEIGHTS,
    WEIGHTS_FILE,
    NotRated,
    calibrate_by_hand,
    draw_for_rating,
    fair_ratings,
)
from nft_pipeline.training.dial.calibrate_command import ratings_before


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
    assert result.learned and (dial.judged_by, dial.judge) == ("person", "a person, by hand") and dial.note == ""
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


# --- ratings from before ---


def rate_luckily(folder, draws):
    """As `rate_truly`, but three too many of the base model's sixteen pictures are liked."""
    rate_truly(folder, draws)
    weights = json.loads((folder / WEIGHTS_FILE).read_text())
    disliked = [row["image"] for row in read_rows(folder) if weights[row["image"]] == 0 and not row["liked"]]
    update_rows(folder, {name: {"liked": True} for name in disliked[:3]})


def test_the_base_rate_is_that_of_all_ratings_of_the_base_model_s_pictures(draws, tmp_path):
    folder = tmp_path / "sweep"
    draw_for_rating(draws, folder)
    rate_luckily(folder, draws)
    alone = calibrate_by_hand(draws, folder)
    before = [(f"earlier {place}", place < 18) for place in range(60)]
    found = calibrate_by_hand(draws, folder, before)
    assert alone.dial.rate > 0.42 and found.dial.rate == pytest.approx((8 + 18) / 76, abs=0.02)
    assert found.dial.own.base == pytest.approx(found.dial.rate, abs=1e-4)
    assert found.dial.pictures == 16 + 60 and "124 pictures" in found.reason
    assert found.dial.rate_error < 0.7 * alone.dial.rate_error
    assert found.dial.own.pictures == alone.dial.own.pictures == 48


def test_ratings_of_another_mind_or_of_other_prompts_are_left_alone(draws, tmp_path):
    draw_for_rating(draws, tmp_path / "sweep")
    rate_truly(tmp_path / "sweep", draws)
    alone = calibrate_by_hand(draws, tmp_path / "sweep")
    before = [(f"earlier {place}", place % 10 != 0) for place in range(60)]
    assert calibrate_by_hand(draws, tmp_path / "sweep", before).dial == alone.dial


def a_line(**changed):
    return {"prompt": "a ring", "seed": 1, "guidance_scale": 1.0, "model": "shapes", "liked": True} | changed


def test_a_fair_sample_is_what_the_base_model_drew_and_nobody_chose(tmp_path):
    lines = {
        "own.png": a_line(),
        "disliked.png": a_line(liked=False),
        "not rated.png": a_line(liked=None),
        "chosen.png": a_line(chosen_by="adapter"),
        "guided.png": a_line(strength=1.0, adapter="shapes-warm"),
        "strength 0.png": a_line(strength=0.0, adapter="shapes-warm"),
        "another model.png": a_line(model="sdxl"),
        "nobody knows.png": a_line(model=None),
        "with CFG.png": a_line(guidance_scale=4.0),
        "scored.png": a_line(liked=None, score=0.5),
    }
    update_rows(tmp_path, lines)
    assert fair_ratings(tmp_path, {"shapes"}, 1.0) == [("a ring", True), ("a ring", False), ("a ring", True)]
    assert fair_ratings(tmp_path, {"shapes"}, 4.0) == [("a ring", True)]
    assert fair_ratings(tmp_path / "nowhere", {"shapes"}, 1.0) == []


def test_where_all_are_rated_no_choice_was_left(tmp_path):
    update_rows(tmp_path, {"own.png": a_line(), "chosen.png": a_line(liked=False, chosen_by="adapter")})
    assert fair_ratings(tmp_path, {"shapes"}, 1.0) == [("a ring", True), ("a ring", False)]


def test_the_run_s_own_folder_is_asked_where_the_adapter_stands_in_its_run(tmp_path, capsys):
    config = AdapterConfig.from_dict(config_values(guidance_scale=1.0))
    own, other, adapter = tmp_path / "own", tmp_path / "other", tmp_path / "run" / "adapter"
    for folder, liked in ((own, True), (other, False)):
        folder.mkdir()
        update_rows(folder, {"a.png": a_line(liked=liked, model="the run's name of it")})
    update_rows(own, {"b.png": a_line(liked=False, model=config.base_model.id)})
    adapter.mkdir(parents=True)
    args = argparse.Namespace(adapter=str(adapter), ratings=None)
    assert ratings_before(args, config, 1.0) == [], "nothing is known of its run"
    settings = {"base_model": "the run's name of it", "data": str(own), "reward_description": "x", "licence": "mit"}
    (tmp_path / "run" / "settings.yaml").write_text(yaml.safe_dump(settings))
    assert ratings_before(args, config, 1.0) == [("a ring", True), ("a ring", False)]
    assert f"2 ratings in {own} are a fair sample" in capsys.readouterr().out
    args.ratings = other
    assert ratings_before(args, config, 1.0) == [("a ring", False)]
    args.ratings = tmp_path / "nowhere"
    with pytest.raises(ValueError, match=r"there is no .*nowhere.metadata\.jsonl; give --ratings a folder of pictures"):
        ratings_before(args, config, 1.0)
