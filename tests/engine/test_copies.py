"""Guided pipelines that are pickled, copied, and sent to another process.

The pipelines here have no text encoders: those of transformers 5 do not pickle once they have run.
"""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from typing import Any

import diffusers
import torch

from helpers.tiny import random_lora
from helpers.zoo import CASES, adapter_for, sample_by_name
from nft_pipeline.pipeline import DiffusionNFTPipeline

SD3 = CASES["StableDiffusion3Pipeline"]


def guided_pipe() -> Any:
    pipe = SD3.pipe()
    pipe.load_lora_weights(random_lora(pipe.transformer, seed=99), adapter_name="style")
    both = {"warm": adapter_for(SD3, pipe), "follow": adapter_for(SD3, pipe)}
    return DiffusionNFTPipeline.from_pipe(pipe, both)


def test_a_pickled_and_a_copied_pipeline_draw_the_same() -> None:
    guided = guided_pipe()
    strength = {"warm": 1.5, "follow": -0.5}
    expected, plain = SD3.sample(guided, nft_strength=strength), SD3.sample(guided._nft_stock)
    for other in (pickle.loads(pickle.dumps(guided)), copy.deepcopy(guided)):
        assert type(other) is type(guided) and isinstance(other, diffusers.StableDiffusion3Pipeline)
        assert other.transformer is not guided.transformer
        assert other.nft_stats.steps == 2 and list(other.nft_adapters) == ["warm", "follow"]
        assert torch.equal(SD3.sample(other, nft_strength=strength), expected)
        transformer = other.transformer
        stock = other.unwrap()
        assert stock.transformer is transformer and type(stock) is diffusers.StableDiffusion3Pipeline
        assert torch.equal(SD3.sample(stock), plain)
    assert torch.equal(SD3.sample(guided, nft_strength=strength), expected)
    shallow = copy.copy(guided)
    assert shallow.transformer is guided.transformer
    assert torch.equal(SD3.sample(shallow, nft_strength=strength), expected)


def test_a_copy_made_in_the_middle_of_a_call_is_not_in_that_call() -> None:
    guided, copies = guided_pipe(), []

    def keep(pipe: Any, step: int, timestep: Any, inputs: dict) -> dict:
        copies.append(copy.copy(pipe))
        return inputs

    expected = SD3.sample(guided, callback_on_step_end=keep)
    assert torch.equal(SD3.sample(copies[0]), expected)


def test_another_process_draws_the_same() -> None:
    guided = guided_pipe()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        theirs = pool.apply(sample_by_name, ("StableDiffusion3Pipeline", guided), {"nft_strength": 0.5})
    # The other process has threads of its own, and sums in another order.
    torch.testing.assert_close(theirs, SD3.sample(guided, nft_strength=0.5), atol=1e-5, rtol=0)
