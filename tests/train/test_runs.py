"""Whole runs on a tiny random model: every source of pictures, stopped and gone on, and what goes wrong on the way."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers.tiny_run import ONLINE, SMALL, picture_folder, save_tiny
from nft_pipeline.adapter import read_adapter
from nft_pipeline.cli import main
from nft_pipeline.training.data.optimality import OptimalityError
from nft_pipeline.training.errors import TrainingError
from nft_pipeline.training.learn.learner import Learner
from nft_pipeline.training.learn.maths import accumulated_tilt
from nft_pipeline.training.run import checkpoint, trainer
from nft_pipeline.training.run.checkpoint import CheckpointError
from nft_pipeline.training.run.stopping import Stopped
from nft_pipeline.training.settings.config import TrainConfig

LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def run(model):
    def go(out, settings, **more):
        lines = []
        config = TrainConfig.from_mapping({**settings, "base_model": model, **more})
        return trainer.train(config, out, say=lines.append, device="cpu"), lines

    return go


KINDS = {
    "positive": {**SMALL, "checkpoint_every": 1},
    "policy": {**SMALL, "objective": "policy", "checkpoint_every": 1},
    "online": {**ONLINE, "rounds": 2, "round_steps": 2, "checkpoint_every": 1},
}


@pytest.fixture(scope="module", params=KINDS)
def whole(request, run, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param)
    return request.param, out, *run(out, KINDS[request.param])


def same_weights(one, two):
    a, b = load_file(one / "adapter" / LORA), load_file(two / "adapter" / LORA)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_writes_the_adapter_it_says(whole):
    kind, out, _result, lines = whole
    adapter = read_adapter(out / "adapter")
    assert adapter.config.kind == ("positive" if kind == "positive" else "policy")
    assert (adapter.head is not None) == (kind == "positive")
    tilt = accumulated_tilt(2.0, 2, 4.0) if kind == "online" else 2.0
    assert adapter.config.tilt == pytest.approx(tilt)
    said = "\n".join(lines)
    if kind != "positive":
        assert f"tilt at strength 1: {tilt:.3g}, as the settings add up to; no sweep has measured it" in said
        assert adapter.config.training["nominal_tilt"] == pytest.approx(tilt)
    assert f"objective {adapter.config.kind}" in said and "forwards + 1 backward per sample" in said
    if kind == "online":
        rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
        assert [entry["round"] for entry in rounds] == [1, 2] and rounds[1]["tilt_old"] == pytest.approx(4 / 3)
        assert "round 2 of 2: tilt 2.22" in said and set(rounds[0]["mean"]) == {"helpers.tiny_run:bright"}
    assert any(value.abs().max() > 0 for key, value in adapter.lora.items() if "lora_B" in key)
    assert not (out / "checkpoint.pt").exists() and not (out / "round.safetensors").exists()
    steps = [json.loads(line)["step"] for line in (out / "losses.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_two_and_two_steps_are_four(whole, run, tmp_path, monkeypatch, at):
    kind, out, _, _ = whole
    real_step = Learner.step

    def asks_to_stop(self, pool):
        losses = real_step(self, pool)
        if self.step_number == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses

    monkeypatch.setattr(Learner, "step", asks_to_stop)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match=rf"stopped at step {at} of 4, saved to .*checkpoint.pt"):
        run(tmp_path, KINDS[kind])
    assert signal.getsignal(signal.SIGTERM) == before and not (tmp_path / "adapter").exists()
    monkeypatch.setattr(Learner, "step", real_step)
    torch.manual_seed(1234)  # whatever has happened in between
    _, lines = run(tmp_path, KINDS[kind])
    assert f"resumed at step {at}" in lines
    assert same_weights(out, tmp_path)
    for log in ("losses.jsonl", "rounds.jsonl") if kind == "online" else ("losses.jsonl",):
        assert (tmp_path / log).read_text() == (out / log).read_text()


def test_a_finished_run_says_so_and_starts_no_second_time(whole, run):
    kind, out, result, _ = whole
    (out / "adapter" / "README.md").write_text("my own words")
    before = {path: path.stat().st_mtime_ns for path in (out / "adapter").rglob("*")}
    again, lines = run(out, KINDS[kind])
    assert len(lines) == 1 and lines[0].startswith("finished already: the adapter is in ")
    assert {path: path.stat().st_mtime_ns for path in (out / "adapter").rglob("*")} == before
    assert again.adapter.config == result.adapter.config and again.folder == result.folder
    with pytest.raises(CheckpointError, match=r"other settings \(lr "):
        run(out, KINDS[kind], lr=0.123)
    assert not list(out.glob("checkpoint*"))


def test_the_command_says_how_to_go_on(model, tmp_path, monkeypatch, capsys):
    def asks_to_stop(self, pool):
        os.kill(os.getpid(), signal.SIGINT)
        self.step_number += 1
        return {"policy": 0.0}

    monkeypatch.setattr(Learner, "step", asks_to_stop)
    path = tmp_path / "my run.yaml"
    path.write_text(yaml.safe_dump({**KINDS["policy"], "base_model": model}))
    command = ["train", str(path), "--out", str(tmp_path / "out"), "--set", "lr=0.1", "--device", "cpu", "--trust"]
    assert main(command) == 130
    said = capsys.readouterr().out
    assert "SIGINT: finishing this step, then saving" in said and "stopped at step 1 of 4" in said
    assert f"To go on: diffusion-nft train '{path}' --set lr=0.1 --trust --out {tmp_path / 'out'}" in said


def test_a_second_signal_ends_the_run_at_once(run, tmp_path, monkeypatch):
    def impatient(self, pool):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Learner, "step", impatient)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, KINDS["policy"])


def test_liked_pictures_in_a_folder_train_a_policy_and_say_the_support_gap(run, tmp_path, monkeypatch):
    data = picture_folder(tmp_path / "data", guidance_scale=5.0)
    settings = {key: value for key, value in SMALL.items() if key not in ("reward", "prompts", "optimality")}
    _, lines = run(tmp_path / "run", settings, data=str(data))
    said = "\n".join(lines)
    assert "24 samples, mean reward 0.500" in said and "sizes of picture: 2" in said
    assert "support gap: v_old misses your pictures" in said and "bakes that guidance in" in said
    assert "objective policy, baseline alpha" in said
    adapter = read_adapter(tmp_path / "run" / "adapter")
    assert adapter.config.kind == "policy" and adapter.config.reward["name"] == "the scores in metadata.jsonl"
    monkeypatch.setattr("nft_pipeline.training.data.sources.folder_pool", None)  # the second time nothing is encoded
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "run" / "pool.safetensors", tmp_path / "again")
    run(tmp_path / "again", settings, data=str(data), made_by_base=True, objective="policy")
    made = {"data": str(data), "made_by_base": True, "held_out_size": 1}
    monkeypatch.undo()
    _, lines = run(tmp_path / "made", settings, **made)
    assert "objective positive" in "\n".join(lines) and "support gap" not in "\n".join(lines)
    assert any("cross-validated, by 5 heads" in line for line in lines)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(run, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "atomic_write_bytes", full)
    _, lines = run(tmp_path, {**KINDS["policy"], "checkpoint_every": 2})
    warned = [line for line in lines if line.startswith("warning")]
    assert len(warned) == 2  # at step 2, and before the run measures itself
    assert all("the disk is full; there is none before it. Free some space" in line for line in warned)
    assert (tmp_path / "adapter").is_dir()
    with pytest.raises(CheckpointError, match="could not be written: the disk is full"):
        checkpoint.save_checkpoint(tmp_path / "x.pt", {})


def test_running_out_of_memory_names_the_keys_and_the_cure_is_allowed(run, tmp_path, monkeypatch):
    real_step = Learner.step

    def too_large(self, pool):
        if self.step_number == 2 and self.config.micro_batch == 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real_step(self, pool)

    monkeypatch.setattr(Learner, "step", too_large)
    with pytest.raises(TrainingError, match=r"out of memory while training: .*Lower micro_batch .now 0"):
        run(tmp_path, KINDS["policy"])
    _, lines = run(tmp_path, {**KINDS["policy"], "micro_batch": 4})
    assert "resumed at step 2" in lines and (tmp_path / "adapter").is_dir()
    with pytest.raises(CheckpointError, match=r"other settings \(lr 0.002 -> 0.5\)"):
        checkpoint.save_checkpoint(tmp_path / "checkpoint.pt", {"settings": {"lr": 0.002, "micro_batch": 1}})
        checkpoint.load_checkpoint(tmp_path / "checkpoint.pt", {"lr": 0.5, "micro_batch": 2})


def test_several_rewards_are_mixed_by_weight(run, tmp_path):
    rewards = {"helpers.tiny_run:bright": 1.0, "helpers.tiny_run:sometimes_missing": 0.5}
    settings = {**ONLINE, "reward": "", "rewards": rewards, "pool_batch": 8, "group_size": 12, "rounds": 1}
    with pytest.raises(OptimalityError, match="3 of 24 samples have no score"):
        run(tmp_path / "too_many", settings)
    _, lines = run(tmp_path / "run", settings, pool_batch=12)
    said = "\n".join(lines)
    assert "2 of 24 dropped for missing scores" in said and said.count("±") == 2
    name = read_adapter(tmp_path / "run" / "adapter").config.reward["name"]
    assert name == "helpers.tiny_run:bright + 0.5 helpers.tiny_run:sometimes_missing"
    assert np.isfinite(json.loads((tmp_path / "run" / "losses.jsonl").read_text().splitlines()[-1])["policy"])


@pytest.mark.parametrize("online", [False, True], ids=["offline", "online"])
def test_a_product_of_rewards_makes_one_joint_adapter(online, run, tmp_path):
    rewards = {"helpers.tiny_run:bright": 1, "helpers.tiny_run:dark": 1}  # alike in their ranks
    settings = {
        **(ONLINE if online else SMALL),
        "reward": "",
        "rewards": rewards,
        "mix": "product",
        "optimality": "rank",
    }
    run(tmp_path, settings)
    config = read_adapter(tmp_path / "adapter").config
    assert config.reward["name"] == "helpers.tiny_run:bright x helpers.tiny_run:dark"
    ranks = (np.arange(4 if online else 24) + 0.5) / (4 if online else 24)
    assert config.training["pool"]["mean_reward"] == pytest.approx(np.mean(ranks**2), abs=0.01)
