"""Real runs on the shipped base model, a few steps long."""

import json

import pytest
import torch

from helpers.zoo import CASES
from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import read_adapter
from nft_pipeline.training.bases.registry import train_base
from nft_pipeline.training.data.pool import load_pool
from nft_pipeline.training.errors import TrainingError
from nft_pipeline.training.learn.learner import Learner
from nft_pipeline.training.run import trainer
from nft_pipeline.training.settings.config import TrainConfig

SMALL = {
    "pool_size": 96,
    "held_out_size": 48,
    "pool_steps": 4,
    "pool_batch": 48,
    "steps": 4,
    "batch": 16,
    "head_batch": 16,
    "precision": "fp32",
    "checkpoint_every": 2,
    "samples_every": 0,
    "sweep_size": 0,
}


def run(out, **overrides):
    lines = []
    result = trainer.train(
        TrainConfig.from_yaml("shapes_warm", {**SMALL, **overrides}), out, say=lines.append, device="cpu"
    )
    return result, lines


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, *run(out)


def test_a_run_writes_an_adapter_that_guides(whole):
    out, _result, lines = whole
    assert sorted(path.name for path in out.iterdir()) == [
        ".run.lock",
        "adapter",
        "finished.json",
        "held_out.safetensors",
        "last.pt",
        "losses.jsonl",
        "pool.safetensors",
        "report.html",
        "settings.yaml",
        "speed.jsonl",
        "tensorboard",
    ]
    adapter = read_adapter(out / "adapter")
    config = adapter.config
    assert (config.kind, config.name, config.tilt, config.beta) == ("positive", "shapes-warm", 2.0, 1.0)
    assert config.base_model.id == "shapes" and config.guidance_scale == 1.0 and config.resolution == (64, 64)
    assert config.training["settings"]["steps"] == 4 and len(config.training["alpha_held_out"]) == 5
    assert any("mean reward" in line for line in lines) and any("AUC" in line for line in lines)
    assert [json.loads(line)["step"] for line in (out / "losses.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    pipe = DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter=out / "adapter")
    pipe.set_progress_bar_config(disable=True)
    pipe("a circle", num_inference_steps=2, output_type="latent")
    assert pipe.nft_stats is not None
    assert any(value.abs().max() > 0 for key, value in adapter.lora.items() if "lora_B" in key)


def test_training_leaves_the_base_model_as_it_was(whole):
    out, _result, _ = whole
    pipe = DiffusionNFTPipeline.from_pretrained("shapes").unwrap()
    before = {key: value.clone() for key, value in pipe.transformer.state_dict().items()}
    learner, pool = learner_of(out, pipe)
    learner.step(pool)
    learner.remove()
    after = pipe.transformer.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def learner_of(out, pipe):
    pool = load_pool(out / "pool.safetensors", _key_in(out / "pool.safetensors"))
    return Learner(train_base(pipe), pool.conditions, TrainConfig.from_yaml("shapes_warm", SMALL)), pool


def _key_in(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()["pool_key"]


def test_stopping_and_running_again_ends_in_the_same_adapter_bit_for_bit(whole, tmp_path, monkeypatch):
    _, result, _ = whole
    real_step = Learner.step

    def stops_at_three(self, pool):
        if self.step_number == 3:
            raise KeyboardInterrupt
        return real_step(self, pool)

    monkeypatch.setattr(Learner, "step", stops_at_three)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert (tmp_path / "checkpoint.pt").is_file() and not (tmp_path / "adapter").exists()
    monkeypatch.setattr(Learner, "step", real_step)
    resumed, lines = run(tmp_path)
    assert "resumed at step 2" in lines
    assert resumed.adapter.lora.keys() == result.adapter.lora.keys()
    assert all(torch.equal(value, result.adapter.lora[key]) for key, value in resumed.adapter.lora.items())
    head = result.adapter.head.state_dict()
    assert all(torch.equal(value, head[key]) for key, value in resumed.adapter.head.state_dict().items())


def test_a_step_is_two_forwards_and_one_of_them_has_a_gradient(whole):
    out, _, _ = whole
    pipe = DiffusionNFTPipeline.from_pretrained("shapes").unwrap()
    learner, pool = learner_of(out, pipe)
    seen = []
    pipe.transformer.register_forward_hook(lambda module, args, output: seen.append(output[0].requires_grad))
    learner.step(pool)
    assert seen == [False, True]


def test_a_loss_that_is_not_finite_stops_the_run_by_name(whole, monkeypatch):
    out, _, _ = whole
    pipe = DiffusionNFTPipeline.from_pretrained("shapes").unwrap()
    learner, pool = learner_of(out, pipe)
    with torch.no_grad():
        learner.roles.parameters[-1].fill_(float("nan"))
    with pytest.raises(TrainingError, match="a loss is not finite at step 1"):
        learner.step(pool)


def test_a_base_model_of_another_family_is_refused_by_name(tmp_path):
    CASES["Lumina2Pipeline"].pipe().save_pretrained(tmp_path / "lumina")
    with pytest.raises(TrainingError, match=r"is a Lumina2Pipeline; the trainer supports .*StableDiffusion3Pipeline, "):
        run(tmp_path / "run", base_model=str(tmp_path / "lumina"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".run.lock"]
