"""Krea 2: an adapter is trained on Raw and used on Turbo, other weights in the same layers, drawn without CFG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.zoo import CASES, adapter_for, denoiser_of, load_ordinarily, lora_for
from nft_pipeline.adapter import read_adapter, write_adapter
from nft_pipeline.pipeline import DiffusionNFTPipeline

CASE = CASES["Krea2Pipeline"]


def turbo() -> Any:
    """The distilled pipeline, with other weights."""
    pipe = CASE.pipe()
    pipe.register_to_config(is_distilled=True)
    generator = torch.Generator().manual_seed(9)
    for weight in denoiser_of(pipe).parameters():
        weight.data += 0.02 * torch.randn(weight.shape, generator=generator)
    return pipe


@pytest.mark.parametrize("kind", ["policy", "positive"])
def test_one_folder_loads_on_both(kind: str, tmp_path: Path) -> None:
    raw = CASE.pipe()
    write_adapter(tmp_path / "adapter", adapter_for(CASE, raw, kind=kind))
    adapter = read_adapter(tmp_path / "adapter")
    drawn = []
    for pipe in (raw, turbo()):
        base = CASE.sample(pipe)
        guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
        assert torch.equal(CASE.sample(guided, nft_strength=0), base)
        drawn.append(CASE.sample(guided))
        assert (drawn[-1] - base).abs().max() > 1e-4 * base.abs().max()
        if kind == "policy":
            load_ordinarily(pipe, lora_for(pipe), "as_lora", ["as_lora"])
            expected = CASE.sample(pipe)
            torch.testing.assert_close(drawn[-1], expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
        else:
            assert guided.nft_stats.alpha.shape == (CASE.steps, 1)
    assert not torch.allclose(*drawn, atol=1e-3)
