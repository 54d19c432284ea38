"""Runs that people live with: pools that stop and go on, runs made longer, begun from an adapter, or that stop."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from helpers import tiny_run
from helpers.tiny_run import ONLINE, SMALL, picture_folder, random_pool, save_tiny, tiny_base
from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import read_adapter, write_adapter
from nft_pipeline.cli import main
from nft_pipeline.hub_cards.report import Hacking
from nft_pipeline.training.bases.base import TrainBase
from nft_pipeline.training.data.optimality import BY_CARD, optimality
from nft_pipeline.training.data.scorers import RunRewards
from nft_pipeline.training.errors import TrainingError
from nft_pipeline.training.learn.export import begin_from
from nft_pipeline.training.learn.learner import Learner
from nft_pipeline.training.rewards.contract import Reward, RewardError, RewardInfo, RewardOutput
from nft_pipeline.training.run import kinds, trainer
from nft_pipeline.training.run.checkpoint import CheckpointError
from nft_pipeline.training.run.load import base_identity, load_base, unshareable
from nft_pipeline.training.run.stopping import Stopped
from nft_pipeline.training.settings.config import TrainConfig
from nft_pipeline.training.show import observer
from nft_pipeline.training.show.compare import CompareError, write_comparison

POOLS = {**SMALL, "pool_batch": 6}  # four batches, and two held out


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def run(model):
    def go(out, settings, more=0, **changed):
        lines: list[str] = []
        config = TrainConfig.from_mapping({**settings, "base_model": model, **changed})
        return trainer.train(config, out, say=lines.append, device="cpu", more=more), "\n".join(lines)

    return go


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return run(out, POOLS)[0].adapter


def same(one, two):
    return one.lora.keys() == two.lora.keys() and all(torch.equal(one.lora[key], two.lora[key]) for key in one.lora)


class Counting:
    """How many pictures were drawn, and a signal after so many batches."""

    def __init__(self, monkeypatch, stop_after=None):
        self.drawn, real = 0, TrainBase.sample_batch
        self.batches = 0

        def sample_batch(base, conditions, noise, empty=None):
            self.drawn, self.batches = self.drawn + len(noise), self.batches + 1
            if self.batches == stop_after:
                os.kill(os.getpid(), signal.SIGINT)
            return real(base, conditions, noise, empty)

        monkeypatch.setattr(TrainBase, "sample_batch", sample_batch)


def test_a_pool_stops_after_the_batch_and_goes_on_behind_it(run, whole, tmp_path, monkeypatch):
    stop_after = 3
    with monkeypatch.context() as patch:
        count = Counting(patch, stop_after)
        with pytest.raises(Stopped, match="stopped while the pool was made; what there is of it is kept"):
            run(tmp_path, POOLS)
        assert count.batches == stop_after
    count = Counting(monkeypatch)
    again, _ = run(tmp_path, POOLS)
    assert count.drawn == 36 - 6 * stop_after and same(again.adapter, whole)
    assert not list(tmp_path.glob("*.parts"))


def test_a_reward_that_fails_costs_no_drawn_picture(run, whole, tmp_path, monkeypatch):
    asked, real = [], tiny_run.bright

    def fails(images, prompts, metadata):
        asked.append(len(images))
        if len(asked) == 3:
            raise ValueError("the server is away")
        return real(images, prompts, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(tiny_run, "bright", fails)
        with pytest.raises(RewardError, match="the server is away"):
            run(tmp_path, POOLS)
    count = Counting(monkeypatch)
    again, _ = run(tmp_path, POOLS)
    assert count.drawn == 36 - 18 and same(again.adapter, whole)


def test_scores_that_were_missing_are_asked_for_again(run, tmp_path, monkeypatch):
    def none(images, prompts, metadata):
        return np.full(len(images), np.nan)

    with monkeypatch.context() as patch:
        patch.setattr(tiny_run, "bright", none)
        with pytest.raises(ValueError, match="24 of 24 samples have no score"):
            run(tmp_path, POOLS)
    count = Counting(monkeypatch)
    run(tmp_path, POOLS)
    assert count.drawn == 12  # the held-out ones alone


def test_a_folder_goes_on_and_its_support_gap_is_computed_once(run, tmp_path, monkeypatch):
    data = picture_folder(tmp_path / "data")
    settings = {key: value for key, value in SMALL.items() if key not in ("reward", "prompts", "optimality")}
    encoded, real = [], TrainBase.encode_pictures

    def encode(base, pictures):
        encoded.append(len(pictures))
        if len(encoded) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(base, pictures)

    gaps, real_gap = [], kinds.offline_pools.__globals__["support_gap"]

    def gap(*args):
        gaps.append(1)
        return real_gap(*args)

    monkeypatch.setattr(TrainBase, "encode_pictures", encode)
    monkeypatch.setitem(kinds.offline_pools.__globals__, "support_gap", gap)
    with pytest.raises(Stopped):
        run(tmp_path / "run", settings, data=str(data))
    _, said = run(tmp_path / "run", settings, data=str(data))
    assert sum(encoded) == 24 and len(gaps) == 1 and said.count("support gap") == 1


@pytest.mark.parametrize("kind", ["offline", "online"])
def test_a_finished_run_is_made_longer_with_all_that_it_knew(run, tmp_path, kind):
    settings = ONLINE if kind == "online" else {**SMALL, "objective": "policy"}
    short = {"rounds": 1} if kind == "online" else {"steps": 2}
    run(tmp_path / "one", settings, **short)
    with pytest.raises(CheckpointError, match="other settings"):
        run(tmp_path / "one", settings)
    longer, said = run(tmp_path / "one", settings, more=1 if kind == "online" else 2, **short)
    assert "resumed at step 2" in said
    steps = [json.loads(line)["step"] for line in (tmp_path / "one" / "losses.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
    if kind == "online":  # whose learning rate does not depend on the length
        assert same(longer.adapter, run(tmp_path / "two", settings)[0].adapter)
    _, said = run(tmp_path / "one", settings, more=1 if kind == "online" else 2, **short)
    assert said.startswith("finished already")
    if kind == "offline":
        with pytest.raises(CheckpointError, match="holds a run that is longer already"):
            run(tmp_path / "one", settings, more=1, steps=1)
        (tmp_path / "one" / "last.pt").unlink()
        with pytest.raises(CheckpointError, match=r"the finished run cannot go on\. .* with init_from: "):
            run(tmp_path / "one", settings, more=3, **short)


def test_a_run_begins_from_an_adapter_of_its_kind(run, whole, tmp_path, monkeypatch):
    source = tmp_path / "first"
    write_adapter(source, whole)
    monkeypatch.setattr(Learner, "step", lambda self, pool: setattr(self, "step_number", self.step_number + 1) or {})
    begun, said = run(tmp_path / "second", SMALL, init_from=str(source), seed=7)
    assert f"beginning from the adapter tiny in {source}" in said and same(begun.adapter, whole)
    for changed, words in (
        ({"objective": "policy"}, "a positive adapter, and this run trains a policy one"),
        ({"rank": 3}, "Set rank to its rank"),
        ({"head_width": 8}, "Set head_width, head_queries and head_layers to the same"),
        ({"lora_targets": ["attn.to_q"]}, "Set lora_targets to its layers"),
    ):
        base = tiny_base()
        learner = Learner(base, base.encode_prompts(["a cat"]), TrainConfig.from_mapping({**SMALL, **changed}))
        with pytest.raises(TrainingError, match=words):
            begin_from(learner, whole)


def test_an_online_run_ends_where_hacking_is_seen(run, tmp_path, monkeypatch):
    monkeypatch.setattr(observer, "hacking_verdict", lambda sweep: Hacking("seen", "it is planted"))
    shown = {"sweep_size": 2, "sweep_strengths": [0, 1], "sweep_every": 1, "watch_reward": "sharpness"}
    settings = {**ONLINE, **shown, "rounds": 3, "stop_when_hacked": True, "calibration_pictures": 0}
    result, said = run(tmp_path, settings)
    assert "the run ends here, after round 1 of 3: hacking was seen" in said
    assert result.adapter.config.training["pairs"] == 2 * settings["batch"]
    assert not (tmp_path / "rounds.jsonl").read_text().count("\n") > 1


class Placed(Reward):
    """Counts how often it is made, and where."""

    info = RewardInfo(name="placed", version="1")
    made: list[str] = []  # noqa: RUF012

    def __init__(self, device: str = "somewhere") -> None:
        Placed.made.append(device)

    def score(self, images, prompts, metadata):
        return RewardOutput(torch.tensor([np.asarray(image).mean() / 255 for image in images]))


def test_rewards_are_loaded_once_and_where_the_run_is(run, tmp_path):
    Placed.made.clear()
    rewards = {"reward": f"{__name__}:Placed"}
    shown = {"sweep_size": 2, "sweep_strengths": [0, 1], "sweep_every": 1, "calibration_pictures": 0}
    run(tmp_path, {**ONLINE, **shown, "round_steps": 1}, **rewards)
    assert Placed.made == ["cpu"]
    config = TrainConfig.from_mapping({**SMALL, "reward": "", "rewards": {f"{__name__}:Placed": {"device": "cuda:3"}}})
    mine = RunRewards(config, torch.device("cpu"))
    assert mine.trained().keys() == mine.trained().keys() and Placed.made == ["cpu", "cuda:3"]
    mine.let_go()
    mine.trained()
    assert len(Placed.made) == 3


@pytest.mark.parametrize("reward", ["colourfulness", "sharpness"])
def test_an_exponential_run_takes_the_exponential_of_what_a_raw_run_takes(reward):
    """Rewards of any unit, whose cards make r of their scores."""
    random = np.random.default_rng(0)
    pictures = (255 * random.random((6, 16, 16, 3)) * np.geomspace(0.004, 1, 6)[:, None, None, None]).astype(np.uint8)
    taken = {}
    for method in BY_CARD:
        config = TrainConfig.from_mapping({**SMALL, "reward": reward, "optimality": method})
        scorers = RunRewards(config, torch.device("cpu")).trained()
        taken[method] = optimality({name: score(pictures, ["x"] * 6) for name, score in scorers.items()}, method).r
    assert np.ptp(taken["raw"]) > 0.01 and taken["exponential"] == pytest.approx(np.exp(4 * (taken["raw"] - 1)))


def test_a_folder_of_this_machine_has_a_name_that_others_know(run, model, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(model).parent)
    config = TrainConfig.from_mapping({**SMALL, "base_model": Path(model).name, "base_revision": "v2"})
    base = tiny_base()
    assert base_identity(config, base).id == str(Path(model).resolve()) and base_identity(config, base).revision == "v2"
    assert "Set base_id to the Hub id" in (unshareable(config) or "")
    known = TrainConfig.from_mapping({**SMALL, "base_model": Path(model).name, "base_id": "someone/tiny"})
    assert base_identity(known, base).id == "someone/tiny" and unshareable(known) is None
    assert unshareable(TrainConfig.from_mapping({**SMALL, "base_model": "shapes"})) is None
    result, said = run(tmp_path, {**SMALL, "objective": "policy"})
    assert "note: base_model is" in said and result.adapter.config.base_model.id == str(Path(model).resolve())
    (tmp_path / "adapter" / "README.md").write_text("my words")
    result, said = run(tmp_path, {**SMALL, "objective": "policy"}, base_id="someone/tiny")
    assert "now says that it is for someone/tiny" in said and "finished already" in said
    assert read_adapter(tmp_path / "adapter").config.base_model.id == "someone/tiny"
    assert (tmp_path / "adapter" / "README.md").read_text() == "my words"


def test_a_gated_base_model_says_what_to_do(monkeypatch):
    from huggingface_hub.errors import GatedRepoError

    def refused(*args: Any, **more: Any) -> None:
        assert more["revision"] == "main" and more["variant"] == "fp16"
        try:
            raise GatedRepoError.__new__(GatedRepoError)
        except GatedRepoError:
            raise OSError("it is no valid model identifier")  # noqa: B904  as diffusers does

    monkeypatch.setattr(DiffusionNFTPipeline, "from_pretrained", refused)
    settings = {"base_model": "someone/gated", "base_revision": "main", "base_variant": "fp16"}
    with pytest.raises(TrainingError, match=r"Open https://huggingface\.co/someone/gated, accept them, and log in"):
        load_base(TrainConfig.from_mapping({**SMALL, **settings}), "cpu")


def test_a_step_that_does_not_fit_is_made_of_smaller_parts(monkeypatch):
    def losses(**settings):
        base = tiny_base()
        learner = Learner(base, base.encode_prompts(["a cat"]), TrainConfig.from_mapping({**SMALL, **settings}))
        return [learner.step(random_pool(base)) for _ in range(2)], learner

    expected, _ = losses(micro_batch=2)
    real = TrainBase.predict

    def small_only(base, x_t, t, conditions):
        if len(x_t) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(base, x_t, t, conditions)

    monkeypatch.setattr(TrainBase, "predict", small_only)
    found, learner = losses()
    assert learner.micro_batch == 2
    for one, other in zip(expected, found, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    monkeypatch.setattr(TrainBase, "predict", lambda *args: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    with pytest.raises(torch.OutOfMemoryError):
        learner.step(random_pool(learner.base))


def test_the_records_have_rates_norms_distances_speed_and_memory(run, tmp_path):
    run(tmp_path, {**SMALL, "objective": "policy"})
    rows = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert all({"lr", "gradient", "lora", "distance to base"} <= row.keys() for row in rows)
    assert rows[0]["lora"] == 0 and rows[-1]["lora"] > 0 and rows[-1]["distance to base"] > 0
    speed = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert len(speed) == 4 and all(row["seconds"] > 0 and row["peak GiB"] > 0 for row in speed)


def kept_run(out: Path, lr: float) -> None:
    """What a run leaves in its folder, as far as a comparison reads it."""
    (out / "samples").mkdir(parents=True)
    (out / "settings.yaml").write_text(yaml.safe_dump({"name": f"lr {lr}", "lr": lr, "rank": 4}))
    rows = [{"step": step, "policy": lr / step, "lr": lr} for step in (1, 2, 3, 4)]
    sweeps = [{"step": 4, "strength": s, "bright": 0.5 + lr, "bright ±": 0.1, "trusted": True} for s in (0.0, 1.0)]
    for table, lines in (("losses", rows), ("sweeps", sweeps)):
        (out / f"{table}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (0, 2, 4):
        Image.new("RGB", (8, 8)).save(out / "samples" / f"step-{step:06d}.png")


def test_two_runs_are_put_side_by_side(tmp_path):
    kept_run(tmp_path / "a", 0.002)
    kept_run(tmp_path / "b", 0.02)
    page = tmp_path / "both.html"
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(page)]) == 0
    text = page.read_text()
    assert "<td>lr</td><td>0.002</td><td>0.02</td>" in text and "<td>rank</td>" not in text
    assert "<h2>Losses</h2>" in text and "<h2>Rewards of the rounds</h2>" not in text
    assert "<td>bright</td><td>0</td><td>0.502 ± 0.1</td><td>0.52 ± 0.1</td>" in text and "trusted" not in text
    assert text.count('<figure><img alt="') == 6 and "<h3>step 4</h3>" in text
    assert "http" not in re.sub(r"base64,[^\"]*", "", text)
    with pytest.raises(CompareError, match="there is no run in"):
        write_comparison(tmp_path, tmp_path / "b", page)
