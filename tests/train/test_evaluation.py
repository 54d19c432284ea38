"""What readers of a paper ask for: other steps and rewards than the rollout's, adapters of a run that goes on, and an
adapter that there is on prompts of one's own."""

import json

import pytest
import yaml
from safetensors.torch import load_file

from helpers.tiny import tiny_adapter, tiny_pipe
from helpers.tiny_run import ONLINE, SHOWN, SMALL, config, save_tiny
from nft_pipeline.adapter import read_adapter, write_adapter
from nft_pipeline.cli import main
from nft_pipeline.training.bases.base import TrainBase
from nft_pipeline.training.demo.evaluate import Drawing, evaluate
from nft_pipeline.training.run.hours import Pace, Work, seconds_of
from nft_pipeline.training.run.trainer import train
from nft_pipeline.training.settings.config import TrainConfig
from nft_pipeline.training.settings.trust import code_in

LORA = "pytorch_lora_weights.safetensors"
STEPS = 3  # of a picture


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base model and an adapter for it, on disk."""
    folder = tmp_path_factory.mktemp("tiny")
    model = save_tiny(folder / "model")
    write_adapter(folder / "adapter", tiny_adapter(tiny_pipe().transformer))
    return model, str(folder / "adapter")


def silent(line):
    pass


def run_of(folders, **more):
    return TrainConfig.from_mapping({**SMALL, "base_model": folders[0], **more})


# Sweeps at other steps and rewards.


def test_sweeps_and_grids_take_their_own_steps(folders, tmp_path, monkeypatch):
    seen, sample = set(), TrainBase.sample_batch

    def watched(self, *args, **more):
        seen.add((self.call["num_inference_steps"], "nft_strength" in self.call))
        return sample(self, *args, **more)

    monkeypatch.setattr(TrainBase, "sample_batch", watched)
    train(run_of(folders, **SHOWN, sweep_steps=STEPS), tmp_path, say=silent, device="cpu")
    assert seen == {(2, False), (STEPS, True)}


def test_what_they_cost_is_counted():
    work, pace = Work(0, 0, 0, 0, grids=1, sweeps=2, dial=4, read=0), Pace(show=(1.0, 0.5))
    assert seconds_of(work, pace, 2, 8) == {"sample grids": 5, "calibration": 8, "sweeps": 10}


def test_more_rewards_are_measured_and_judge_nothing(folders, tmp_path):
    more = {"sweep_rewards": ["helpers.tiny_run:gloomy", "colourfulness"], "watch_reward": ""}
    found = []
    for name, settings in (("with", more), ("without", {"watch_reward": ""})):
        result = train(run_of(folders, **{**SHOWN, **settings}), tmp_path / name, say=silent, device="cpu")
        found.append(result)
        rows = [json.loads(line) for line in (tmp_path / name / "sweeps.jsonl").read_text().splitlines()]
        gloomy = [row.get("helpers.tiny_run:gloomy") for row in rows]
        if name == "with":
            assert gloomy == pytest.approx([1 - row["helpers.tiny_run:bright"] for row in rows])
            assert all(row["colourfulness"] >= 0 for row in rows)
        else:
            assert gloomy == [None, None]
    with_them, without = found
    names = [(curve.name, curve.trained) for curve in with_them.report.rewards]
    assert names == [("helpers.tiny_run:bright", True), ("helpers.tiny_run:gloomy", False), ("colourfulness", False)]
    assert with_them.report.hacking == without.report.hacking
    assert with_them.adapter.config.strength == without.adapter.config.strength


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (
            {"sweep_rewards": ["helpers.tiny_run:bright"]},
            "has 'helpers.tiny_run:bright', which is trained on and measur",
        ),
        (
            {"sweep_rewards": ["sharpness"], "watch_reward": "sharpness"},
            "has 'sharpness', which is watched and measured",
        ),
        ({"sweep_rewards": ["ocr", "ocr"]}, "a list of different rewards"),
        ({"sweep_steps": 0}, "sweep_steps is 0, expected a whole number"),
    ],
)
def test_settings_that_do_not_go_together(settings, fault):
    with pytest.raises(ValueError, match="sweep_") as caught:
        config(**settings)
    assert fault in str(caught.value)


def test_their_code_is_asked_about_and_their_addresses_are_nobodys_business():
    assert code_in({"sweep_rewards": ["a:b", "ocr", "remote:http://x:1"]}) == ["a:b"]
    from nft_pipeline.training.settings.public import public_settings

    public = public_settings(config(sweep_rewards=["remote:http://10.0.0.7:8000", "ocr"]).to_dict())
    assert public["sweep_rewards"] == ["remote", "ocr"]


# Adapters of a run that goes on.


@pytest.mark.parametrize("kind", ["positive", "online"])
def test_adapters_are_kept_while_the_run_goes_on(kind, folders, tmp_path):
    settings = {**(ONLINE if kind == "online" else SMALL), "base_model": folders[0], "export_every": 2}
    result = train(TrainConfig.from_mapping(settings), tmp_path, say=silent, device="cpu")
    names = sorted(path.name for path in (tmp_path / "adapters").iterdir())
    assert names == ["step-000002", "step-000004"]
    first, last = (load_file(tmp_path / "adapters" / name / LORA) for name in names)
    finished = load_file(result.folder / LORA)
    assert all((last[key] == finished[key]).all() for key in finished)
    assert any((first[key] != finished[key]).any() for key in finished)
    early = read_adapter(tmp_path / "adapters" / names[0])
    assert early.config.kind == result.adapter.config.kind and (early.head is None) == (result.adapter.head is None)


def test_they_are_the_same_whether_or_not_the_run_was_stopped(folders, tmp_path, monkeypatch):
    from nft_pipeline.training.learn.learner import Learner

    settings = run_of(folders, export_every=1, checkpoint_every=1)
    train(settings, tmp_path / "one", say=silent, device="cpu")
    step = Learner.step

    def breaks(self, pool):
        if self.step_number == 2:
            raise RuntimeError("the machine went away")
        return step(self, pool)

    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="went away"):
        broken.setattr(Learner, "step", breaks)
        train(settings, tmp_path / "two", say=silent, device="cpu")
    assert len(list((tmp_path / "two" / "adapters").iterdir())) == 2
    train(settings, tmp_path / "two", say=silent, device="cpu")
    for number in range(1, 5):
        one, two = (load_file(tmp_path / name / "adapters" / f"step-{number:06d}" / LORA) for name in ("one", "two"))
        assert all((one[key] == two[key]).all() for key in one)


def test_sample_draws_with_one_of_them(folders, tmp_path, capsys):
    train(run_of(folders, export_every=3), tmp_path, say=silent, device="cpu")
    adapter = str(tmp_path / "adapters" / "step-000003")
    arguments = [
        "sample",
        "a cat",
        "--model",
        folders[0],
        "--adapter",
        adapter,
        "--strengths",
        "0",
        "1",
        "--seeds",
        "0",
    ]
    assert main([*arguments, "--steps", "2", "--device", "cpu", "--out", str(tmp_path / "grid.png")]) == 0
    assert (tmp_path / "grid.png").is_file()


# An adapter that there is.


@pytest.fixture
def prompts_file(tmp_path):
    path = tmp_path / "test.jsonl"
    rows = [{"prompt": "a cat", "count": 1}, {"prompt": "two dogs", "count": 2}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def of(folders, prompts_file, *more):
    arguments = ["eval", "--model", folders[0], "--adapter", folders[1], "--prompts", prompts_file, "--device", "cpu"]
    return main([*arguments, *more])


def test_an_adapter_is_evaluated_on_prompts_rewards_and_steps_of_ones_own(folders, prompts_file, tmp_path, capsys):
    rewards = ["--reward", "helpers.tiny_run:bright", "--reward", "helpers.tiny_run:gloomy"]
    out = tmp_path / "scores.json"
    more = ["--strengths", "2", "0", "--steps", str(STEPS), "--n", "5", "--batch", "2", "--out", str(out)]
    assert of(folders, prompts_file, *rewards, *more) == 0
    shown = capsys.readouterr().out
    assert "5 pictures of 2 prompts at each of 2 strengths" in shown
    assert "| strength 0 | strength 2 |" in shown and "| helpers.tiny_run:bright |" in shown
    said = json.loads(out.read_text())
    assert (said["n"], said["num_inference_steps"], said["guidance_scale"]) == (5, STEPS, 1.0)
    at_0, at_2 = said["strengths"]
    assert (at_0["strength"], at_2["strength"]) == (0, 2) and at_0["helpers.tiny_run:bright"]["n"] == 5
    assert at_0["helpers.tiny_run:bright"]["mean"] == pytest.approx(1 - at_0["helpers.tiny_run:gloomy"]["mean"])
    change = at_2["helpers.tiny_run:bright"]["change"]["mean"]
    moved = at_2["helpers.tiny_run:bright"]["mean"] - at_0["helpers.tiny_run:bright"]["mean"]
    assert change == pytest.approx(moved) and abs(change) > 1e-4
    assert at_2["distance to base"]["mean"] > 0 == at_0["distance to base"]["mean"]


def test_rewards_get_the_facts_of_the_file(folders, prompts_file):
    from helpers import tiny_run

    tiny_run.MET.clear()
    assert of(folders, prompts_file, "--reward", "helpers.tiny_run:listener", "--strengths", "0", "--steps", "1") == 0
    assert [(prompt, facts["count"]) for prompt, facts in tiny_run.MET] == [("a cat", 1), ("two dogs", 2)]


def test_a_base_model_is_evaluated_without_an_adapter(folders, prompts_file, capsys):
    arguments = ["eval", "--model", folders[0], "--prompts", prompts_file, "--steps", "1", "--device", "cpu"]
    assert main([*arguments, "--reward", "helpers.tiny_run:bright"]) == 0
    shown = capsys.readouterr().out
    assert "strength 0 |" in shown and "strength 1" not in shown


def test_pictures_are_those_of_the_pipelines_own_call(folders):
    """Picture i has the noise of seed + i, so that anybody can draw it again."""
    import numpy as np
    import torch

    from nft_pipeline import DiffusionNFTPipeline

    pipe = DiffusionNFTPipeline.from_pretrained(folders[0], nft_adapter=folders[1])
    seen = []

    def keeps(pictures, prompts):
        seen.append((pictures, list(prompts)))
        return np.zeros(len(pictures))

    evaluate(pipe, Drawing(["a cat", "a dog"], 3, 7, 2, {"num_inference_steps": 2}), [1.0], {"keeps": keeps})
    pictures, texts = seen[1]
    assert texts == ["a cat", "a dog", "a cat"]
    noise = torch.Generator().manual_seed(9)
    alone = pipe(prompt="a cat", generator=noise, num_inference_steps=2, nft_strength=1.0).images[0]
    assert np.abs(pictures[2].astype(int) - np.asarray(alone).astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--reward", "ocr"], "--reward is 'ocr' and there are no prompts to draw for it; give --prompts"),
        (["--prompts", "FILE"], "nothing says which model is to draw; give --adapter, --model or both"),
        (["--prompts", "FILE", "--model", "MODEL", "--n", "0"], "--n is 0, expected a whole number of at least 1"),
        (["--prompts", "nowhere.txt", "--model", "MODEL"], "prompts 'nowhere.txt' is not known"),
    ],
)
def test_what_is_missing_is_said(arguments, said, folders, prompts_file, capsys):
    names = {"FILE": prompts_file, "MODEL": folders[0]}
    assert main(["eval", *(names.get(word, word) for word in arguments)]) == 2
    assert said in capsys.readouterr().err


# What `check` says of memory.


def test_check_says_what_each_phase_took(folders, tmp_path):
    from nft_pipeline.training.run.check import check

    path, lines = tmp_path / "run.yaml", []
    path.write_text(yaml.safe_dump({**SMALL, "base_model": folders[0]}))
    assert check(path, None, tmp_path / "out", say=lines.append, device="cpu") == []
    (line,) = (line for line in lines if line.startswith("memory: GiB of this process at most: "))
    phases = [part.rpartition(" ")[0] for part in line.rpartition(": ")[2].split(", ")]
    assert phases == ["encoding prompts", "drawing", "decoding", "scoring", "training", "sweeps", "reading alpha"]
