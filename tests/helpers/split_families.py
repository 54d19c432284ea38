"""Splits every family's denoiser over two processes, by FSDP and by DeepSpeed. Says which share of its weights one of
them has after a step, and how far its outputs and a LoRA's gradients are from those of the whole one.

    PYTHONPATH=tests python tests/helpers/split_families.py
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, distributed

from helpers.forking import together
from helpers.two_processes import SPLIT, local_size
from helpers.whole import CALLS, whole_pipe
from helpers.zoo import CASES
from helpers.zoo_case import WIDTH, WORDS, rows
from nft_pipeline.training.bases.base import Conditions, TrainBase
from nft_pipeline.training.bases.registry import train_base
from nft_pipeline.training.devices import processes
from nft_pipeline.training.learn.roles import LoraRoles
from nft_pipeline.training.run.sharding import split

SAMPLED = ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline")


def base_and_conditions(name: str) -> tuple[TrainBase, Conditions]:
    call = CALLS.get(name, {"height": 8, "width": 8})
    base = train_base(whole_pipe(name) if name in CALLS else CASES[name].pipe(), {**call, "guidance_scale": 1.0})
    if name in CALLS:
        return base, base.encode_prompts(["a cat", "a red dog"])
    conditions = {"text": rows([0, 1], WORDS, WIDTH, seed=2)}
    if name != "StableDiffusionPipeline":
        conditions["pooled"] = rows([0, 1], WIDTH, seed=3)
    return base, conditions


def run(base: TrainBase, conditions: Conditions) -> list[Tensor]:
    """The output of the base, that with a LoRA, and the LoRA's gradients."""
    x_t = torch.randn(base.latent_shape(2), generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.4, 0.6])
    torch.manual_seed(2)
    roles = LoraRoles(base.denoiser, base.family, 2, [], with_old=False)
    for parameter in roles.parameters:
        torch.nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        roles.use("base")
        alone = base.predict(x_t, t, conditions)
    roles.use("theta")
    output = base.predict(x_t, t, conditions)
    output.square().mean().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in roles.parameters]
    roles.remove()
    return [alone, output.detach(), *gradients]


def apart(one: list[Tensor], two: list[Tensor]) -> float:
    """The largest difference, as a share of the largest number of its tensor."""
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-8)) for a, b in zip(one, two, strict=True))


def measure() -> dict[str, Any]:
    found = {}
    for name in (*SAMPLED, *CALLS):
        for how in SPLIT:
            base, conditions = base_and_conditions(name)
            whole, size = run(base, conditions), sum(p.numel() for p in base.denoiser.parameters())
            split(base.denoiser, base.device, how)
            moved = apart(whole, run(base, conditions))
            share = sum(map(local_size, base.denoiser.parameters())) / size
            found[f"{name}, {how}"] = {"share": share, "apart": moved}
    return found


def _measure(rank: int) -> None:
    processes.start()
    found = measure()
    distributed.barrier()
    if rank == 0:
        print(json.dumps(found), flush=True)


def main() -> None:
    torch.set_num_threads(1)
    together(2, _measure)


if __name__ == "__main__":
    main()
