"""Forwards are what guidance costs: two where it is on, one where it is off, counted on the denoiser itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.tiny import counted_forwards, sample, tiny_adapter, tiny_pipe
from nft_pipeline.pipeline import DiffusionNFTPipeline

STEPS = 4


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["positive", "policy"])
@pytest.mark.parametrize(
    ("arguments", "passes"),
    [
        ({}, [2, 2, 2, 2]),
        ({"nft_strength": -0.5}, [2, 2, 2, 2]),
        ({"nft_strength": 0}, [1, 1, 1, 1]),
        ({"nft_interval": (0.0, 1.0)}, [2, 2, 2, 2]),
        ({"nft_interval": (0.5, 0.95)}, [1, 2, 2, 1]),
        ({"nft_interval": (1.0, 1.0)}, [2, 1, 1, 1]),
    ],
)
def test_forwards_a_step(kind: str, cfg: float, arguments: dict, passes: list[int]) -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, kind=kind))
    with counted_forwards(pipe.transformer) as forwards:
        sample(guided, num_inference_steps=STEPS, guidance_scale=cfg, **{"nft_strength": 0.75, **arguments})
    assert forwards == [sum(passes)]
    stats = guided.nft_stats
    assert stats.passes.tolist() == passes
    assert (stats.steps, stats.forwards) == (STEPS, sum(passes))
    off = torch.tensor(passes) == 1
    assert (stats.scale[off] == 0).all() and (stats.push[off] == 0).all() and stats.alpha[off].isnan().all()
    assert (stats.scale[~off] != 0).all() and (stats.push[~off] > 0).all()
    assert (stats.alpha[~off].isnan() == (kind == "policy")).all()


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("mode", ["two_pass", "batched", "single"])
def test_a_policy_at_strength_1_is_one_forward_with_the_lora_on(mode: str, cfg: float) -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, kind="policy"))
    with counted_forwards(pipe.transformer) as forwards:
        sample(guided, num_inference_steps=STEPS, guidance_scale=cfg, nft_mode=mode, nft_interval=(0.6, 1.0))
    assert forwards == [STEPS]
    stats = guided.nft_stats
    assert stats.scale.flatten().tolist() == [1.0, 1.0, 1.0, 0.0]
    assert stats.push[:3].isnan().all() and stats.push[3] == 0, "v_old is not known where one forward was v_lora's"


def test_no_second_pass_where_alpha_is_nought() -> None:
    pipe = tiny_pipe()
    adapter: Any = tiny_adapter(pipe.transformer, alpha=0.5)
    with torch.no_grad():
        adapter.head.attention_out.bias.fill_(-200.0)
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    assert torch.equal(sample(guided), sample(pipe))
    assert guided.nft_stats.passes.tolist() == [1, 1, 1]
    assert torch.equal(guided.nft_stats.alpha, torch.zeros(3, 1))


def test_the_interval_is_closed_and_in_noise_level() -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))
    sample(guided, num_inference_steps=STEPS)
    levels = guided.nft_stats.noise_level[:, 0]
    torch.testing.assert_close(levels, pipe.scheduler.sigmas[:-1], atol=1e-6, rtol=0)
    edges = (levels[2].item(), levels[1].item())
    sample(guided, num_inference_steps=STEPS, nft_interval=edges)
    assert guided.nft_stats.passes.tolist() == [1, 2, 2, 1]


def test_an_interval_that_holds_no_step_is_the_stock_pipeline() -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))
    assert torch.equal(sample(guided, nft_interval=(0.4, 0.5)), sample(pipe))
    assert guided.nft_stats.forwards == 3


def test_the_summary_names_what_happened() -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, alpha=0.5))
    sample(guided, num_images_per_prompt=2, nft_interval=(0.5, 1.0))
    lines = str(guided.nft_stats).splitlines()
    assert lines[0] == "3 steps, 2 samples, 5 denoiser forwards"
    assert "0.500" in lines[2] and "-" in lines[4]
    assert lines[2].split()[-1] == "2" and lines[4].split()[-1] == "1"
