"""Hotswap: another adapter's numbers in the place of a loaded one's, without compiling anything again."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.tiny import (
    assert_same_state,
    load_style,
    random_head,
    random_lora,
    sample,
    state_of,
    tiny_adapter,
    tiny_pipe,
)
from nft_pipeline.engine import swapping
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


def ours(denoiser: nn.Module, name: str = "nft") -> dict[str, Tensor]:
    """The numbers of a LoRA as they are on the denoiser now."""
    parts = (f".lora_A.{name}.", f".lora_B.{name}.")
    return {key: value.clone() for key, value in denoiser.state_dict().items() if any(part in key for part in parts)}


def _plain(pipe: Any) -> None: ...


def _bfloat16(pipe: Any) -> None:
    pipe.transformer.to(torch.bfloat16)


def _fp8(pipe: Any) -> None:
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def _compiled(pipe: Any) -> None:
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")


@pytest.mark.parametrize("prepare", [_plain, load_style, _bfloat16, _fp8, _compiled])
@pytest.mark.parametrize("second", [False, True], ids=["alone", "beside another"])
def test_after_any_swaps_the_numbers_are_those_of_a_fresh_load(prepare: Callable, second: bool) -> None:
    pipe = tiny_pipe()
    # Of one rank, since a fresh load has no zeros behind a smaller one.
    adapters = [tiny_adapter(pipe.transformer), other_adapter(pipe), tiny_adapter(pipe.transformer, seed=31)]
    beside = {"beside": tiny_adapter(pipe.transformer, seed=41)} if second else {}
    prepare(pipe)

    def loaded(adapter: Any) -> Any:
        return DiffusionNFTPipeline.from_pipe(pipe, {"default": adapter, **beside})

    def state(guided: Any) -> dict[str, Any]:
        parts = state_of(getattr(pipe.transformer, "_orig_mod", pipe.transformer))
        return {what: part for what, part in parts.items() if what != "modules"}

    fresh = []
    for adapter in adapters:
        guided = loaded(adapter)
        fresh.append(state(guided))
        guided.unwrap()
    guided = loaded(adapters[0])
    copied = copy.copy(guided)
    for i in (1, 2, 0, 0, 2, 1):
        guided.load_nft_adapter(adapters[i], hotswap=True)
        assert_same_state(fresh[i], state(guided))
        assert guided.nft_adapters["default"] is adapters[i]
        assert copied.nft_adapters["default"] is adapters[i], "a copy has the same LoRA, so it needs the same head"


def test_a_second_guided_pipeline_over_the_model_keeps_its_adapter() -> None:
    pipe = tiny_pipe()
    first, other = tiny_adapter(pipe.transformer), other_adapter(pipe)
    one, two = (DiffusionNFTPipeline.from_pipe(pipe, first) for _ in range(2))
    expected = sample(one)
    two.load_nft_adapter(other, hotswap=True)
    assert torch.equal(sample(one), expected)
    one.load_nft_adapter(other, hotswap=True)
    assert torch.equal(sample(one), sample(two))
    one.unwrap()
    two.load_nft_adapter(first, hotswap=True)
    assert torch.equal(sample(two), expected)


def test_offloaded_models_swap_too() -> None:
    pipe = tiny_pipe()
    first, other = tiny_adapter(pipe.transformer), other_adapter(pipe)
    expected = sample(DiffusionNFTPipeline.from_pipe(tiny_pipe(), other))
    guided = DiffusionNFTPipeline.from_pipe(pipe, first)
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level"
    )
    guided.load_nft_adapter(other, hotswap=True)
    assert torch.equal(sample(guided), expected)


@pytest.mark.parametrize("fails_at", [0, 1, 7])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_swap_that_fails_half_way_leaves_the_old_adapter_whole(
    monkeypatch: pytest.MonkeyPatch, fails_at: int, rank: int
) -> None:
    pipe = tiny_pipe()
    first, other = tiny_adapter(pipe.transformer), other_adapter(pipe, rank)
    guided = DiffusionNFTPipeline.from_pipe(pipe, first)
    before, drawn = state_of(pipe.transformer), sample(guided)
    write, written = swapping._write, []

    def out_of_memory(weight: Tensor, numbers: Tensor) -> None:
        written.append(weight)
        if len(written) == fails_at + 1:
            weight.zero_()
            raise torch.OutOfMemoryError("no room for the next matrix")
        write(weight, numbers)

    monkeypatch.setattr(swapping, "_write", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        guided.load_nft_adapter(other, hotswap=True)
    assert guided.nft_adapters["default"] is first
    assert_same_state(before, state_of(pipe.transformer))
    assert torch.equal(sample(guided), drawn)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["first", "last", "head"])
def test_one_bad_number_anywhere_is_found_before_anything_is_written(number: float, where: str) -> None:
    pipe = tiny_pipe()
    first, other = tiny_adapter(pipe.transformer), other_adapter(pipe)
    guided = DiffusionNFTPipeline.from_pipe(pipe, first)
    before = ours(pipe.transformer)
    spoilt = list(other.head.state_dict().values() if where == "head" else other.lora.values())
    spoilt[0 if where == "first" else -1].view(-1)[-1] = number
    with pytest.raises(AdapterError, match=r"holds 1 of .* numbers that are NaN or infinite"):
        guided.load_nft_adapter(other, hotswap=True)
    assert all(torch.equal(before[key], value) for key, value in ours(pipe.transformer).items())


def test_numbers_whose_sum_is_too_large_are_still_numbers() -> None:
    pipe = tiny_pipe()
    first, other = tiny_adapter(pipe.transformer), other_adapter(pipe)
    guided = DiffusionNFTPipeline.from_pipe(pipe, first)
    key = next(iter(other.lora))
    large = replace(other, lora={**other.lora, key: torch.full_like(other.lora[key], 3e38)})
    guided.load_nft_adapter(large, hotswap=True)
    assert guided.nft_config.name == "other"


def test_a_swap_looks_at_its_own_layers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searching the model for them took half of a swap, and more the larger the model."""
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))
    searched = []
    named_modules = nn.Module.named_modules

    def counted(module: nn.Module, *args: Any, **kwargs: Any) -> Iterator[Any]:
        searched.append(type(module).__name__)
        return named_modules(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "named_modules", counted)
    adapter = other_adapter(pipe)  # searches it for the layers to train
    assert searched
    searched.clear()
    guided.load_nft_adapter(adapter, hotswap=True)
    assert not searched


def test_a_lora_that_somebody_took_out_is_not_swapped() -> None:
    pipe = tiny_pipe()
    first = tiny_adapter(pipe.transformer)
    guided = DiffusionNFTPipeline.from_pipe(pipe, first)
    for take_out in (pipe.unload_lora_weights, lambda: pipe.transformer.delete_adapters("nft")):
        take_out()
        with pytest.raises(AdapterError, match=r"the nft LoRA is no longer on (.|\n)*Load it without hotswap"):
            guided.load_nft_adapter(other_adapter(pipe), hotswap=True)
        guided.load_nft_adapter(first)
        guided.load_nft_adapter(other_adapter(pipe), hotswap=True)
    pipe.transformer = guided.transformer = tiny_pipe(seed=1).transformer
    with pytest.raises(AdapterError, match="the nft LoRA is no longer on"):
        guided.load_nft_adapter(first, hotswap=True)
