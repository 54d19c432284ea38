"""How long a run takes, said before it begins and while it goes."""

import re

import pytest
import yaml

from helpers.tiny_run import ONLINE, SHOWN, SMALL, config, picture_folder, save_tiny
from nft_pipeline.training.run import hours
from nft_pipeline.training.run.check import check
from nft_pipeline.training.run.hours import Clock, Pace, Work, duration, seconds_of, timed, timed_drawing, work_of
from nft_pipeline.training.run.trainer import train
from nft_pipeline.training.settings.config import TrainConfig


def test_work_is_counted_from_the_settings():
    more = {"samples_every": 2, "sweep_size": 8, "sweep_strengths": [0.0, 1.0, 2.0], "calibration_pictures": 240}
    work = work_of(config(pool_size=20, held_out_size=10, steps=6, **more), prompts=3, held_prompts=50, pictures=0)
    assert (work.drawn, work.steps, work.encoded) == (30, 6, 0)
    assert work.sweeps == 8 * (1 + 2 + 2) and work.dial == 240
    assert work.grids == 4 * (4 * (1 + 2 + 2 + 2) + 5)
    assert work.prompts == 3 + 10 + 4 + 2 + 50
    assert work.read == 5 * 2 * 10 + 2 * int(0.26 * 240)
    wordings = {"pool_wordings": ["a {prompt}", "{prompt} there"], **more}
    worded = work_of(
        config(pool_size=20, held_out_size=10, steps=6, **wordings), prompts=3, held_prompts=50, pictures=0
    )
    assert worded.prompts == work.prompts + 2 * 3 + 10  # no more texts than pictures
    policy = work_of(config(objective="policy", **more), prompts=3, held_prompts=3, pictures=0)
    assert (policy.drawn, policy.read) == (24, 0) and policy.sweeps == 8 * (1 + 1 + 2)
    online = work_of(config(**{**ONLINE, **more, "sweep_every": 1, "rounds": 3}), 3, 3, 0)
    assert (online.drawn, online.steps) == (24, 6) and online.sweeps == 3 * 8 * (1 + 1 + 2)


def test_seconds_are_work_times_pace():
    work = Work(prompts=10, encoded=0, drawn=100, steps=20, grids=8, sweeps=6, dial=4, read=30)
    pace = Pace(prompt=0.5, encode=9, decode=1, score=2, read=0.1, draw=(3, 0.25), show=(1, 0.5), step=7)
    assert seconds_of(work, pace, 8) == {
        "encoding prompts": 5,
        "drawing and scoring": 100 * (3 + 8 * 0.25 + 1 + 2),
        "training": 140,
        "sample grids": 8 * 5,
        "calibration": 4 * 7 + 3,
        "sweeps": 6 * 7,
    }


def test_what_only_the_first_time_costs_is_not_counted(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(hours.time, "monotonic", lambda: now[0])

    def costing(*seconds):
        each = iter(seconds)

        def act():
            now[0] += next(each)

        return act

    assert timed(costing(5.0, 1.0)) == 1.0
    assert timed(costing(50.0)) == 50.0

    def draw(steps):
        now[0] += 0.6 + 0.3 * steps

    assert timed_drawing(draw, 3) == pytest.approx((0.2, 0.1))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (41, "41 s"), (91, "2 min"), (3000, "50 min"), (12000, "3 h 20 min"), (7200, "2 h"), (122400, "34 h")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_what_is_left_is_steps_and_pictures_still_to_come():
    clock = Clock(config(**{**ONLINE, "rounds": 5}))
    assert clock.left(0, 0) is None
    clock.drew(8, 16.0)
    clock.stepped(3.0)
    clock.stepped(1.0)
    assert clock.left(2, 1) == 8 * 2 + 4 * 8 * 2
    assert clock.left(10, 5) == 0


@pytest.mark.parametrize("kind", ["pool", "folder", "online"])
def test_check_says_the_time_of_every_phase(kind, tmp_path):
    settings = {**(ONLINE if kind == "online" else SMALL), **SHOWN, "base_model": save_tiny(tmp_path / "model")}
    if kind == "folder":
        settings |= {"data": str(picture_folder(tmp_path / "data")), "prompts": None, "reward": "", "optimality": "raw"}
    path, lines = tmp_path / "my_run.yaml", []
    path.write_text(yaml.safe_dump(settings))
    assert check(path, None, tmp_path / "out", say=lines.append, device="cpu") == []
    (line,) = (line for line in lines if line.startswith("the run takes about"))
    drawn = "encoding pictures" if kind == "folder" else "drawing and scoring"
    for phase in ("encoding prompts", drawn, "training", "sample grids", "sweeps"):
        assert re.search(rf"{phase} \d+ (s|min|h)", line), line


def test_a_run_says_which_round_of_how_many_and_how_much_is_left(tmp_path, capsys):
    lines = []
    settings = TrainConfig.from_mapping({**ONLINE, "base_model": save_tiny(tmp_path / "model")})
    train(settings, tmp_path / "out", say=lines.append, device="cpu")
    for number in (1, 2):
        line = rf"round {number} of 2: tilt .*; the whole run has about \d+ s left"
        assert any(re.match(line, text) for text in lines)
    bars = capsys.readouterr().err
    assert "round 2 of 2: sampling" in bars and "left in all" in bars
