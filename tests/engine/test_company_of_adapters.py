"""Laws and intervals by adapter: each adapter is drawn by its own, as if it were alone with them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from helpers.tiny import sample, tiny_adapter, tiny_pipe
from nft_pipeline.errors import GuidanceError
from nft_pipeline.pipeline import DiffusionNFTPipeline


def guided_pipe() -> Any:
    pipe = tiny_pipe()
    adapters = {
        "warm": tiny_adapter(pipe.transformer, alpha=0.5),
        "cold": tiny_adapter(pipe.transformer, alpha=0.5, seed=8),
        "follow": tiny_adapter(pipe.transformer, kind="policy", seed=9),
    }
    return DiffusionNFTPipeline.from_pipe(pipe, adapters)


def test_a_law_for_one_goes_with_a_policy_beside_it() -> None:
    guided = guided_pipe()
    with pytest.raises(GuidanceError, match="needs a positive adapter"):
        sample(guided, nft_law="odds")
    sample(guided, nft_law={"warm": "nft"}, nft_strength={"warm": 1.0, "cold": 1.0, "follow": 0.5})
    scales = guided.nft_stats.scales[:, 0, 0].tolist()
    odds = 0.5 * (torch.e**2 - 1) / (1 + 0.5 * (torch.e**2 - 1))
    assert scales == pytest.approx([2.0 * 0.5, odds, 0.5])
    sample(guided, nft_law={"warm": "odds", "follow": "nft"})
    assert guided.nft_stats.scales[:, 0, 0].tolist() == pytest.approx([odds, odds, 1.0])


def test_an_interval_for_each_costs_no_forward_outside_it() -> None:
    guided = guided_pipe()
    own = {"warm": (0.8, 1.0), "cold": (0.0, 0.8), "follow": (0.8, 0.9)}
    sample(guided, nft_interval=own, num_inference_steps=4)
    stats = guided.nft_stats
    levels = stats.noise_level[:, 0]
    for name, at_work in zip(own, stats.scales[:, :, 0] != 0, strict=True):
        low, high = own[name]
        assert torch.equal(at_work, (levels >= low) & (levels <= high)), name
    assert stats.passes.tolist() == (1 + (stats.scales[:, :, 0] != 0).sum(0)).tolist()
    sample(guided, nft_interval={"warm": (0.8, 1.0), "cold": (0.8, 1.0), "follow": (0.8, 1.0)}, num_inference_steps=4)
    expected = sample(guided, nft_interval=(0.8, 1.0), num_inference_steps=4)
    assert torch.equal(sample(guided, nft_interval=dict.fromkeys(own, (0.8, 1.0)), num_inference_steps=4), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"nft_law": {"warn": "nft"}},
            "nft_law names the adapter 'warn', loaded are 'warm', 'cold', 'follow'.",
        ),
        ({"nft_law": {"follow": "odds"}}, 'nft_law="odds" needs a positive adapter'),
        ({"nft_interval": {"warm": (0.5, 0.2)}}, "nft_interval is (0.5, 0.2), expected (low, high)"),
        ({"nft_cap": {"warm": 0.5}}, "nft_cap is {'warm': 0.5}, and there is one for all adapters of a call"),
        ({"nft_mode": {"warm": "single"}}, "nft_mode is {'warm': 'single'}, and there is one for all adapters"),
        ({"nft_law": {"warm": "odds"}, "nft_rate": 0.5}, "nft_law were both given"),
    ],
)
def test_what_cannot_be_named(arguments: dict, message: str) -> None:
    with pytest.raises(GuidanceError, match=re.escape(message)):
        sample(guided_pipe(), **arguments)
