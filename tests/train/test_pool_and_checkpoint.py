"""Pools and checkpoints come back as they were, and never for another run's settings."""

import dataclasses
import random
from collections import Counter

import numpy as np
import pytest
import torch

from helpers.damaged_checkpoints import OUTCOMES, outcomes
from helpers.tiny_run import tiny_base
from nft_pipeline.training.data.parts import Parts
from nft_pipeline.training.data.pool import (
    Pool,
    PoolError,
    check_pool,
    load_pool,
    pool_key,
    sample_pool,
    save_pool,
    wording_of,
)
from nft_pipeline.training.errors import TrainingError
from nft_pipeline.training.run.checkpoint import CheckpointError, by_step, load_checkpoint, rotate, save_checkpoint
from nft_pipeline.training.run.run_folder import only_run
from nft_pipeline.training.settings.config import ConfigError, TrainConfig


@pytest.fixture
def pool():
    generator = torch.Generator().manual_seed(0)
    return Pool(
        buckets=(torch.randn(4, 4, 2, 2, generator=generator).half(), torch.randn(2, 4, 1, 4).half()),
        bucket=torch.tensor([0, 1, 0, 0, 1, 0]),
        place=torch.tensor([0, 0, 1, 2, 1, 3]),
        prompt=torch.arange(6) % 2,
        conditions={"text": torch.randn(2, 5, 8, generator=generator), "pooled": torch.randn(2, 8)},
        r=torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0]),
    )


def test_a_pool_round_trips_for_its_own_settings_only(pool, tmp_path):
    path, key = tmp_path / "pool.safetensors", pool_key({"seed": 1})
    assert load_pool(path, key) is None
    save_pool(pool, path, key)
    back = load_pool(path, key)
    assert back.tensors().keys() == pool.tensors().keys()
    assert all(torch.equal(value, pool.tensors()[name]) for name, value in back.tensors().items())
    assert load_pool(path, pool_key({"seed": 2})) is None


def test_sampled_pictures_are_compared_with_those_of_their_prompt():
    def by_place(pictures, texts):  # pictures of the second prompt all score more than those of the first
        return np.array([place + 100 * (text == "b") for place, text in enumerate(texts)])

    base = tiny_base(num_inference_steps=1)
    sampled, _ = sample_pool(base, ["a", "b"], {"place": by_place}, "top", size=8, seed=0, batch=8, at=0.25)
    assert sampled.r.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    few, _ = sample_pool(base, ["a", "b"], {"place": by_place}, "top", size=4, seed=0, batch=4, at=0.5)
    assert few.r.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("prompts", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_prompt_is_asked_for_in_every_wording_equally_often(prompts, count):
    size = 4 * prompts * count
    asked = Counter(zip(range(size), wording_of(size, prompts, count).tolist(), strict=True))
    by_prompt = Counter((number % prompts, wording) for number, wording in asked)
    assert by_prompt == {(prompt, wording): 4 for prompt in range(prompts) for wording in range(count)}
    of_one_round = Counter(wording_of(prompts, prompts, count).tolist())
    assert max(of_one_round.values()) - min(of_one_round[wording] for wording in range(count)) <= 1


def test_worded_pictures_are_drawn_as_asked_and_learned_under_their_prompt():
    """The pictures are those of the worded prompts, the texts that rewards read and the conditions are the prompts'."""
    base, read = tiny_base(num_inference_steps=1), []

    def good(pictures, texts):
        read.extend(texts)
        return np.linspace(0, 1, len(texts))

    asking = {"size": 4, "seed": 0, "batch": 4}
    wordings = ["{prompt} at night", "a {prompt}"]
    pool, _ = sample_pool(base, ["a", "b"], {"good": good}, wordings=wordings, **asking)
    plain, _ = sample_pool(base, ["a", "b"], {"good": good}, **asking)
    asked, _ = sample_pool(base, ["a at night", "a b", "a a", "b at night"], {"good": good}, **asking)
    assert read[:4] == ["a", "b", "b", "a"]  # a wording at a time
    assert pool.prompt.tolist() == [0, 1, 0, 1]
    assert all(torch.equal(value, plain.conditions[name]) for name, value in pool.conditions.items())
    assert torch.allclose(pool.buckets[0].float(), asked.buckets[0].float(), atol=2e-3)
    assert not torch.equal(pool.buckets[0], plain.buckets[0])


def test_a_worded_pool_that_was_stopped_goes_on_to_the_same(tmp_path):
    base, calls = tiny_base(num_inference_steps=1), []

    def stop():
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt

    def good(pictures, texts):
        return pictures.reshape(len(texts), -1).mean(1) / 255

    asking = {"size": 7, "seed": 0, "batch": 2, "wordings": ["{prompt} at night", "a {prompt}"]}
    whole, _ = sample_pool(base, ["a", "b", "c"], {"good": good}, **asking)
    with pytest.raises(KeyboardInterrupt):
        sample_pool(base, ["a", "b", "c"], {"good": good}, parts=Parts(tmp_path / "parts", "key"), stop=stop, **asking)
    on, _ = sample_pool(base, ["a", "b", "c"], {"good": good}, parts=Parts(tmp_path / "parts", "key"), **asking)
    assert torch.allclose(on.buckets[0].float(), whole.buckets[0].float(), atol=2e-3)
    assert torch.allclose(on.r, whole.r, atol=2e-2)


@pytest.mark.parametrize("wrong", ["{prompt}", [""], ["3d"], ["{prompt} {prompt}"], [1]])
def test_a_wording_has_the_prompt_in_it_once(wrong):
    with pytest.raises(ConfigError, match=r"pool_wordings.*expected a list of texts with one \{prompt\} in each"):
        TrainConfig.from_yaml("emoji_3d", {"pool_wordings": wrong})


def test_a_truncated_pool_is_named_and_made_again(pool, tmp_path):
    path, lines = tmp_path / "pool.safetensors", []
    save_pool(pool, path, "key")
    whole = path.read_bytes()
    for data in (b"", whole[:4], whole[:200], whole[:-1]):
        path.write_bytes(data)
        assert load_pool(path, "key", lines.append) is None
        assert str(path) in lines[-1] and "cannot be read as a pool" in lines[-1] and "made again" in lines[-1]


@pytest.mark.parametrize("r", [torch.zeros(6), torch.ones(6), torch.full((6,), 0.5)])
def test_a_pool_with_nothing_to_learn_is_named(pool, r):
    with pytest.raises(PoolError, match="reward 'mine' averages"):
        check_pool(dataclasses.replace(pool, r=r), "mine")
    check_pool(pool, "mine")


def test_a_checkpoint_round_trips_for_its_own_settings_only(tmp_path):
    path, settings = tmp_path / "checkpoint.pt", {"steps": 10, "lr": 0.1}
    assert load_checkpoint(path, settings) is None
    save_checkpoint(path, {"settings": settings, "learner": {"x": torch.arange(3)}})
    assert torch.equal(load_checkpoint(path, settings)["learner"]["x"], torch.arange(3))
    with pytest.raises(CheckpointError, match=r"other settings \(lr 0.1 -> 0.2\)"):
        load_checkpoint(path, {"steps": 10, "lr": 0.2})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_checkpoint(path, settings)


def test_a_bit_of_a_pool_that_flipped_is_named(pool, tmp_path):
    path, lines = tmp_path / "pool.safetensors", []
    save_pool(pool, path, "key")
    chance, whole = random.Random(0), path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(60):
        data = bytearray(whole)
        data[chance.randrange(start, len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        assert load_pool(path, "key", lines.append) is None
        assert "its tensors have another hash than" in lines[-1]
    assert len(lines) == 60
    assert whole.count(b"conditions.text") == 2
    path.write_bytes(whole.replace(b"conditions.text", b"conditions.tuxt", 1))
    assert load_pool(path, "key", lines.append) is None and "its tensors are " in lines[-1]


@pytest.mark.parametrize("hashed", [True, False])
def test_damaged_checkpoints_load_nothing_else(tmp_path, hashed):
    """Those of the first versions, without a hash, are judged by the checksums of their parts."""
    counts = outcomes(tmp_path, 250, seed=1, hashed=hashed)
    assert counts[OUTCOMES[-1]] == 0 and counts.total() == 250 and counts[OUTCOMES[1]] > 125


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    path, settings, lines = tmp_path / "checkpoint.pt", {"steps": 10}, []
    for step in (3, 6, 9):
        save_checkpoint(path, {"settings": settings, "learner": {"step": step}})
        rotate(path, step, 1)
    assert sorted(by_step(path)) == [6, 9]  # two at least
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)
    (tmp_path / "checkpoint-000009.pt").write_bytes(data[:200])
    assert load_checkpoint(path, settings, lines.append)["learner"]["step"] == 6
    assert len(lines) == 3 and "checkpoint.pt cannot be read" in lines[0]
    assert lines[2] == "going on from the one before, checkpoint-000006.pt"
    (tmp_path / "checkpoint-000006.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no sound one beside it"):
        load_checkpoint(path, settings)


def test_a_folder_is_one_runs_at_a_time(tmp_path):
    with only_run(tmp_path), pytest.raises(TrainingError, match="another process is training in"), only_run(tmp_path):
        pass
    with only_run(tmp_path):
        pass
