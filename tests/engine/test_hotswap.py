"""Hotswap: another adapter's numbers in the place of a loaded one's, without compiling anything again."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.tiny import load_style, random_head, random_lora, sample, tiny_adapter, tiny_pipe
from nft_pipeline.errors import AdapterError, GuidanceError
from nft_pipeline.pipeline import DiffusionNFTPipeline


def other_adapter(pipe: Any, rank: int = 2) -> Any:
    adapter = tiny_adapter(pipe.transformer)
    lora = random_lora(pipe.transformer, seed=21, rank=rank)
    head = random_head(16, seed=22)
    return replace(
        adapter, lora=lora, head=head, config=replace(adapter.config, name="other", rank=rank, beta=0.5, tilt=4.0)
    )


@pytest.mark.parametrize("rank", [1, 2])
def test_a_swapped_adapter_draws_as_a_loaded_one(rank: int) -> None:
    pipe = tiny_pipe()
    load_style(pipe)
    first, other = tiny_adapter(pipe.transformer), other_adapter(pipe, rank)
    guided = DiffusionNFTPipeline.from_pipe(pipe, other)
    expected, plain = sample(guided), sample(guided.unwrap())
    guided = DiffusionNFTPipeline.from_pipe(pipe, first)
    before = sample(guided)
    weights = {name: id(weight) for name, weight in pipe.transformer.named_parameters()}
    guided.load_nft_adapter(other, hotswap=True)
    assert {name: id(weight) for name, weight in pipe.transformer.named_parameters()} == weights
    assert guided.nft_config.name == "other"
    torch.testing.assert_close(sample(guided), expected, atol=1e-6 if rank == 1 else 0, rtol=0)
    guided.load_nft_adapter(first, hotswap=True)
    assert torch.equal(sample(guided), before)
    assert torch.equal(sample(guided.unwrap()), plain)


class Counted:
    """A backend that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        torch._dynamo.reset()
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: Any) -> Callable:
        self.graphs += 1
        return graph.forward


def test_nothing_is_compiled_again() -> None:
    pipe = tiny_pipe(layers=1)
    adapters = [tiny_adapter(pipe.transformer), other_adapter(pipe), other_adapter(pipe, 1)]
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapters[0])
    backend = Counted()
    try:
        pipe.transformer.compile(backend=backend, fullgraph=True)
        sample(guided)
        assert backend.graphs == 2
        for adapter in [*adapters, *adapters]:
            guided.load_nft_adapter(adapter, hotswap=True)
            sample(guided)
        assert backend.graphs == 2
        guided.load_nft_adapter(adapters[1])
        sample(guided)
        assert backend.graphs > 2, "loading compiles again, or this test could not fail"
    finally:
        torch._dynamo.reset()


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    pipe = tiny_pipe()
    first = tiny_adapter(pipe.transformer)
    guided = DiffusionNFTPipeline.from_pipe(pipe)
    with pytest.raises(GuidanceError, match="of the loaded adapter 'default', and none of that name is loaded"):
        guided.load_nft_adapter(first, hotswap=True)
    guided.load_nft_adapter(first)
    before = sample(guided)
    fewer = {key: value for key, value in first.lora.items() if "transformer_blocks.0.attn.to_q" not in key}
    faults = {
        "A smaller rank fits into a larger one": other_adapter(pipe, 3),
        "change different layers (": replace(first, lora=fewer),
        "neither may have one for v_old": replace(
            tiny_adapter(pipe.transformer, kind="policy"), old=random_lora(pipe.transformer, seed=4)
        ),
    }
    for message, adapter in faults.items():
        with pytest.raises(AdapterError, match=re.escape(message)):
            guided.load_nft_adapter(adapter, hotswap=True)
        assert torch.equal(sample(guided), before)

    def swap(pipe: Any, step: int, timestep: Any, inputs: dict) -> dict:
        pipe.load_nft_adapter(first, hotswap=True)
        return inputs

    with pytest.raises(GuidanceError, match="and a call is running"):
        sample(guided, callback_on_step_end=swap)
