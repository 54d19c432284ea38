"""`diffusion-nft check`: what would stop a run later is said now, all of it at once."""

import os
import shutil
from collections import namedtuple

import pytest
import yaml

from helpers.tiny_run import ONLINE, SMALL, picture_folder, save_tiny
from nft_pipeline.cli import main
from nft_pipeline.training.run import trial
from nft_pipeline.training.run.check import check
from nft_pipeline.training.run.trainer import train
from nft_pipeline.training.settings.config import TrainConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture
def faults_of(model, tmp_path):
    def go(settings, **more):
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**settings, "base_model": model, **more}))
        return check(path, None, tmp_path / "out", say=lambda line: None, device="cpu")

    return go


@pytest.mark.parametrize(
    "settings", [SMALL, {**SMALL, "objective": "paper"}, ONLINE], ids=["positive", "paper", "online"]
)
def test_a_run_that_can_start_has_no_faults_and_leaves_nothing(faults_of, settings, tmp_path):
    assert faults_of(settings) == []
    assert os.listdir(tmp_path) == ["run.yaml"]


def test_a_folder_that_can_be_trained_on_has_no_faults(faults_of, tmp_path):
    settings = {key: value for key, value in SMALL.items() if key not in ("reward", "prompts", "optimality")}
    assert faults_of(settings, data=str(picture_folder(tmp_path / "data"))) == []


@pytest.mark.parametrize(
    ("more", "warned"),
    [
        (
            {"objective": "paper", "optimality": "raw"},
            "objective 'paper' wants r to be 1/2 in the mean, and optimality",
        ),
        ({"baseline": "half", "optimality": "raw"}, "baseline 'half' wants r to be 1/2 in the mean, and optimality is"),
        ({"objective": "paper"}, None),
        ({"optimality": "raw"}, None),
    ],
)
def test_a_baseline_that_drives_rounds_away_from_their_own_samples_is_warned_of(model, tmp_path, more, warned):
    path, lines = tmp_path / "run.yaml", []
    path.write_text(yaml.safe_dump({**ONLINE, "eta0": None, **more, "base_model": model}))
    assert check(path, None, tmp_path / "out", say=lines.append, device="cpu") == []
    found = [line for line in lines if line.startswith("warning")]
    assert (warned in found[0]) if warned else not found
    if warned:  # and the run says the number
        lines.clear()
        config = TrainConfig.from_yaml(path, {"rounds": 1, "reward": "helpers.tiny_run:dark"})
        train(config, tmp_path / "out", say=lines.append, device="cpu")
        assert sum("wants r to be 1/2 in the mean, and r is 0.0" in line for line in lines) == 1


def test_faults_of_different_stages_come_in_one_report(faults_of, tmp_path):
    data = picture_folder(tmp_path / "data", 4)
    (data / "2.png").write_bytes(b"no picture")
    wrong = {"reward": "helpers.tiny_run:brigt", "prompts": "nowhere.txt", "stepps": 3, "lr": -1, "data": str(data)}
    faults = "\n".join(faults_of({**SMALL, **wrong}))
    for phrase in (
        "'stepps' is not a setting; did you mean 'steps'?",
        "lr is -1, expected a number above 0",
        "reward helpers.tiny_run:brigt: reward 'helpers.tiny_run:brigt' cannot be imported",
        "prompts: prompts 'nowhere.txt' is not known",
        "data: ",
        "2.png cannot be read as a picture",
    ):
        assert phrase in faults


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"reward": "helpers.tiny_run:in_bytes"}, "outside its range 0 to 1; give the function an attribute `info`"),
        ({"lora_targets": ["to_nothing"]}, "to_nothing"),
        ({"base_model": "no/such-model"}, "base model: "),
        ({"reward": "helpers.tiny_run:prompts"}, "samples, pictures and scores: "),
    ],
)
def test_what_only_trying_finds(faults_of, change, phrase):
    faults = faults_of({**SMALL, **change}, **({"base_model": change["base_model"]} if "base_model" in change else {}))
    assert len(faults) == 1 and phrase in faults[0]


def test_a_disk_that_is_too_full_is_found(faults_of, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 1000))
    (fault,) = faults_of(SMALL)
    assert "0.0 GB are free" in fault and "lower pool_size" in fault


def test_memory_that_is_too_small_is_found(faults_of, monkeypatch):
    def too_large(self, pool):
        raise MemoryError("cannot allocate")

    monkeypatch.setattr(trial.Learner, "step", too_large)
    (fault,) = faults_of(SMALL)
    assert "out of memory while training" in fault and "micro_batch" in fault


def test_the_command_says_it_and_its_exit_code_too(model, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "base_model": model}))
    arguments = ["check", str(path), "--out", str(tmp_path / "out"), "--device", "cpu", "--trust"]
    assert main(arguments) == 0
    assert "the run can start" in capsys.readouterr().out
    assert main([*arguments, "--set", "rank=0", "--set", "ema=2"]) == 1
    said = capsys.readouterr().out
    assert "2 faults:" in said and "rank is 0, expected a whole number from 1" in said
