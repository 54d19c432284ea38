"""Pools and checkpoints come back as they were, and never for another run's settings."""

import dataclasses

import numpy as np
import pytest
import torch

from helpers.tiny_run import tiny_base
from nft_pipeline.training.data.pool import (
    Pool,
    PoolError,
    check_pool,
    load_pool,
    pool_key,
    sample_pool,
    save_pool,
)
from nft_pipeline.training.run.checkpoint import CheckpointError, load_checkpoint, save_checkpoint


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


def test_a_truncated_pool_is_named(pool, tmp_path):
    path = tmp_path / "pool.safetensors"
    save_pool(pool, path, "key")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(PoolError, match="cannot be read as a pool"):
        load_pool(path, "key")


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
