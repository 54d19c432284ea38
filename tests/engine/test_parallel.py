"""A picture that several processes draw together: its tokens split (right), its weights split or wrapped (refused)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from helpers import context_parallel
from helpers.tiny import tiny_adapter, tiny_pipe
from nft_pipeline.errors import FamilyError
from nft_pipeline.families.ranks import token_gatherer
from nft_pipeline.pipeline import DiffusionNFTPipeline

TESTS = Path(context_parallel.__file__).parents[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes, which this system cannot")
def test_two_processes_use_one_alpha_and_draw_what_one_process_draws() -> None:
    run = subprocess.run(
        [sys.executable, context_parallel.__file__],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    said = json.loads(run.stdout.splitlines()[-1])
    assert "cannot be combined with tensor parallelism" in said.pop("tensor parallel")
    assert said.keys() == context_parallel.DRAWN.keys()
    for kind, values in said.items():
        for what, between in values.items():
            assert between["equal"], (kind, what, "the two processes")
            assert between["apart"] < 1e-5, (kind, what, "one process")


def test_one_process_gathers_nothing() -> None:
    tokens = torch.zeros(1, 2, 3)
    assert token_gatherer(tiny_pipe().transformer)(tokens) is tokens


def test_weights_split_by_tensor_parallelism_are_refused() -> None:
    pipe = tiny_pipe()
    adapter = tiny_adapter(pipe.transformer)
    pipe.transformer._parallel_config = SimpleNamespace(tensor_parallel_config=object(), context_parallel_config=None)
    with pytest.raises(FamilyError, match=r"weights of this SD3Transformer2DModel are split .*ContextParallelConfig"):
        DiffusionNFTPipeline.from_pipe(pipe, adapter)


class _Wrapped(torch.nn.Module):
    """What xDiT makes of a denoiser: a module of its own around it."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def test_a_denoiser_in_a_wrapper_of_another_tool_is_refused() -> None:
    pipe = tiny_pipe()
    adapter = tiny_adapter(pipe.transformer)
    pipe.transformer = _Wrapped(pipe.transformer)
    with pytest.raises(FamilyError, match="the denoiser is a _Wrapped, not diffusers'"):
        DiffusionNFTPipeline.from_pipe(pipe, adapter)
