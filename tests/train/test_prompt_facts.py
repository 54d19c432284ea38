"""Prompts that come with facts, which rewards get as metadata, and the negative prompt of what a run draws."""

from __future__ import annotations

import json

import pytest
import torch

from helpers.tiny_run import MET, ONLINE, SMALL, config, save_tiny, tiny_base
from nft_pipeline.training.data.drawn import draw_folder
from nft_pipeline.training.data.folder import read_folder
from nft_pipeline.training.data.pool import sample_pool
from nft_pipeline.training.data.scorers import RunRewards
from nft_pipeline.training.data.sources import _drawn_with
from nft_pipeline.training.errors import ConfigError, TrainingError
from nft_pipeline.training.learn.learner import Learner
from nft_pipeline.training.learn.online import Prompts, sample_round
from nft_pipeline.training.rewards.contract import RewardError
from nft_pipeline.training.rewards.find import find_prompts, prompt_facts
from nft_pipeline.training.run.load import load_base
from nft_pipeline.training.settings.config import TrainConfig

ROWS = [{"prompt": "a cat", "count": 2}, {"prompt": "a dog", "count": 1, "tag": {"kind": "one"}}]


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", encoding="utf-8")
    MET.clear()
    return str(path)


def test_a_file_of_objects_gives_texts_and_facts(listed, tmp_path):
    assert find_prompts(listed) == ["a cat", "a dog"]
    assert prompt_facts(listed, None, "shapes_warm") == {row["prompt"]: row for row in ROWS}
    plain = tmp_path / "prompts.txt"
    plain.write_text('{"prompt": "a cat"}\n')
    assert find_prompts(str(plain)) == ['{"prompt": "a cat"}'] and prompt_facts(str(plain)) == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3 is no JSON"),
        ('"a cow"', "line 3 is 'a cow', expected an object"),
        ('{"text": "a cow"}', "expected an object with a text"),
        ('{"prompt": " "}', "expected an object with a text"),
        ('{"prompt": "a cat", "count": 3}', "'a cat' stands twice with different facts"),
    ],
)
def test_a_bad_line_is_named(listed, line, message):
    with open(listed, "w", encoding="utf-8") as file:
        file.write("\n".join([*map(json.dumps, ROWS), line]))
    with pytest.raises(RewardError, match=message):
        prompt_facts(listed)


def test_the_same_line_twice_is_one(listed):
    with open(listed, "a", encoding="utf-8") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    assert find_prompts(listed) == ["a cat", "a dog", "a cat"] and len(prompt_facts(listed)) == 2


@pytest.mark.parametrize("optimality", ["raw", "rank"])
def test_the_rewards_of_a_pool_and_of_a_round_get_the_facts_of_each_prompt(listed, optimality):
    given = {"reward": "helpers.tiny_run:listener", "prompts": listed, "optimality": optimality}
    base, settings = tiny_base(height=8, width=8), config(**given)
    rewards = RunRewards(settings, base.device)
    sample_pool(base, find_prompts(listed), rewards.trained(), optimality, size=4, seed=0, batch=4)
    assert [(row["prompt"], row) for row in (ROWS * 2)] == MET
    MET.clear()
    settings = config(**{**ONLINE, **given, "objective": "policy"})
    learner = Learner(base, base.encode_prompts(["a cat"]), settings)
    drawn = Prompts(base, find_prompts(listed), settings).of_round(0)
    sample_round(base, learner.roles, drawn, None, RunRewards(settings, base.device).trained(), settings, 0)
    assert len(MET) == 8 and all(facts == ROWS[prompt == "a dog"] for prompt, facts in MET)


def test_scores_are_not_taken_for_those_of_other_facts(listed):
    settings = config(reward="helpers.tiny_run:listener", prompts=listed)
    one = RunRewards(settings, torch.device("cpu")).identity("helpers.tiny_run:listener")
    with open(listed, "a", encoding="utf-8") as file:
        file.write('{"prompt": "a cow", "count": 7}\n')
    assert one != RunRewards(settings, torch.device("cpu")).identity("helpers.tiny_run:listener")


def test_what_guidance_leads_away_from_is_the_negative_prompt(tmp_path):
    model = save_tiny(tmp_path / "model")
    given = {**SMALL, "base_model": model, "guidance_scale": 5.0}
    base, _ = load_base(TrainConfig.from_mapping(given), "cpu")
    other, _ = load_base(TrainConfig.from_mapping({**given, "negative_prompt": "a blur"}), "cpu")
    empty, negative = base.encode_empty(), other.encode_empty()
    assert torch.equal(empty["text"], base.encode_prompts([""])["text"])
    assert torch.equal(negative["text"], base.encode_prompts(["a blur"])["text"])
    conditions, noise = base.encode_prompts(["a cat"]), torch.randn(base.latent_shape(1))
    drawn = [one.sample_batch(conditions, noise, one.encode_empty()) for one in (base, other)]
    assert float((drawn[0] - drawn[1]).abs().max()) > 1e-3
    stock = other.pipe(
        "a cat",
        negative_prompt="a blur",
        latents=noise,
        guidance_scale=5.0,
        num_inference_steps=2,
        max_sequence_length=4,
        height=8,
        width=8,
        output_type="latent",
    ).images
    torch.testing.assert_close(drawn[1], stock, rtol=0, atol=1e-5)
    settings = config(base_model=model, guidance_scale=5.0, negative_prompt="a blur")
    assert _drawn_with(other, settings) == {**_drawn_with(base, settings), "negative_prompt": "a blur"}
    draw_folder(other, settings, ["a cat"], tmp_path / "pictures", 2)
    lines = (tmp_path / "pictures" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["negative_prompt"] for line in lines] == ["a blur"] * 2
    (tmp_path / "pictures" / "metadata.jsonl").write_text(
        "".join(json.dumps({**json.loads(line), "liked": bool(i)}) + "\n" for i, line in enumerate(lines))
    )
    assert len(read_folder(tmp_path / "pictures").pictures) == 2


def test_a_negative_prompt_that_nothing_reads_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="negative_prompt is 'a blur' with guidance_scale 1"):
        config(negative_prompt="a blur")
    monkeypatch.setattr(type(tiny_base()), "has_cfg", False)
    given = {"base_model": save_tiny(tmp_path / "model"), "guidance_scale": 5.0, "negative_prompt": "a blur"}
    with pytest.raises(TrainingError, match="has no classifier-free guidance"):
        load_base(config(**given), "cpu")
