"""A calibration draws several weights in one batch: each picture is what its weight draws alone, in every family that
can be trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.whole import CALLS, whole_pipe
from helpers.zoo import CASES, adapter_for
from helpers.zoo_case import WIDTH, WORDS, rows
from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.training.bases.registry import TRAINABLE, train_base
from nft_pipeline.training.dial.draws import Draws

PROMPTS = ["a cat", "a red dog"]
ROWS = [(0, 11), (1, 12), (0, 13), (1, 14)]
WEIGHTS = [-0.5, 0.0, 0.4, 1.0]


def draws_of(name: str) -> Draws:
    """Of a tiny random model of a family with a random policy."""
    pipe: Any = whole_pipe(name) if name in CALLS else CASES[name].pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe)
    guided.load_nft_adapter(adapter_for(CASES[name], pipe, kind="policy"), name="tiny")
    edge = {"height": 8, "width": 8}
    base = train_base(guided, {**CALLS.get(name, edge), "num_inference_steps": 2, "guidance_scale": 1.0})
    if name in CALLS:
        conditions = base.encode_prompts(PROMPTS)
    else:
        conditions = {"text": rows([0, 1], WORDS, WIDTH, seed=2)}
        if "pooled_prompt_embeds" in base.call_conditions({**conditions, "pooled": conditions["text"]}):
            conditions["pooled"] = rows([0, 1], WIDTH, seed=3)
    draws = Draws(base, "tiny", PROMPTS, conditions, None, 3)
    base.decode_latents = lambda latents: latents.numpy()  # type: ignore[method-assign]  # bare ones have no VAE
    return draws


@pytest.mark.parametrize("mode", ["single", "two_pass"])
@pytest.mark.parametrize("name", sorted(TRAINABLE))
def test_weights_in_one_batch_draw_what_each_draws_alone(name: str, mode: str) -> None:
    draws = draws_of(name)
    with torch.inference_mode():
        together = draws.draw(ROWS, WEIGHTS, mode, 0.0).latents
        alone = torch.cat(
            [draws.draw([row], weight, mode, 0.0).latents for row, weight in zip(ROWS, WEIGHTS, strict=True)]
        )
        off = draws.draw(ROWS, 0.0, mode, 0.0).latents
    moved = (alone - off).flatten(1).norm(dim=1)
    nothing = 1e-4 * float(moved.max())
    assert float(moved[1]) < nothing and bool((moved[[0, 2, 3]] > 1000 * nothing).all())
    assert bool(((together - alone).flatten(1).norm(dim=1) < nothing).all())
