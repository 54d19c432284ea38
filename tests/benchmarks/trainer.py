"""Samples per second and peak memory of a training step, against a plain loop with the official loss's passes.

    python -m tests.benchmarks.trainer                                              # small SD3, CPU
    python -m tests.benchmarks.trainer --model sd3.5-medium --device cuda --batch 8 --rank 32

The plain loop is what DiffusionNFT's authors run for each pair of picture and noise level (arXiv:2509.16117): a forward
of `old`, one of the reference, one of theta with its backward, and `paper_loss`. Same model, batch, rank, optimiser.
A sample is one that the LoRA learns from; the head of `positive` sees half as many beside, as the settings' defaults
have it. Models are random: only time and memory are looked at. Prints a table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from nft_pipeline.training.bases.base import TrainBase
from nft_pipeline.training.bases.noising import NoiseLaw
from nft_pipeline.training.bases.registry import train_base
from nft_pipeline.training.data.pool import Pool
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.learn.learner import Learner
from nft_pipeline.training.learn.objective import Objective
from nft_pipeline.training.settings.config import TrainConfig
from tests.benchmarks.random_models import TEXT, build

OFFLINE = {"positive": {"objective": "positive"}, "policy, baseline alpha": {"objective": "policy"}}
ONLINE = {"online": {"rounds": 1}, "online, anchored": {"rounds": 1, "eta0": 10.0}}
WORDS = 77


def learner_of(base: TrainBase, pool: Pool, args: argparse.Namespace, **settings: object) -> Learner:
    config = TrainConfig(
        name="benchmark",
        base_model="random",
        reward="none",
        prompts="none",
        reward_description="none",
        licence="none",
        rank=args.rank,
        batch=args.batch,
        head_batch=max(1, args.batch // 2),
        gradient_checkpointing=args.gradient_checkpointing,
        **settings,  # type: ignore[arg-type]
    )
    return Learner(base, pool.conditions, config)


def plain_step(learner: Learner, pool: Pool) -> None:
    """The official passes, on a learner with an `old` of its own."""
    batch = learner.draw(pool, learner.config.batch, NoiseLaw(1.0)).to(learner.device)
    outputs = {}
    for role in ("old", "base"):
        learner.roles.use(role)
        with torch.no_grad():
            outputs[role] = learner.base.predict(batch.states.x_t, batch.states.t, batch.conditions)
    learner.roles.use("theta")
    v = learner.base.predict(batch.states.x_t, batch.states.t, batch.conditions)
    loss = Objective("paper").loss(v, batch.states, old=outputs["old"]).mean()
    (loss + 1e-4 * (v - outputs["base"]).float().square().mean()).backward()
    torch.nn.utils.clip_grad_norm_(learner.roles.parameters, 1.0)
    learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)


def measured(step: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """(seconds, peak memory in GiB; 0 on a CPU) of one step."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    started = time.perf_counter()
    step()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started, torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help="small, sd3.5-medium or flux.1-dev (default: small)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7, help="measured steps of each kind, after one to warm up")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    base = train_base(build(args.model, args.device, dtype), dtype=dtype)
    latents = torch.randn(base.latent_shape(4 * args.batch))
    joint = getattr(base.settings, "joint_attention_dim", 2 * TEXT)
    conditions = {"text": torch.randn(4, WORDS, joint), "pooled": torch.randn(4, base.settings.pooled_projection_dim)}
    pool = Pool.of(latents, torch.arange(len(latents)) % 4, conditions, torch.rand(len(latents)))
    rows, plain = [], 0.0
    # One LoRA at a time: every row is measured on the model it would run on.
    for name, settings in {"plain loop, official passes": {"rounds": 1}, **OFFLINE, **ONLINE}.items():
        learner = learner_of(base, pool, args, **settings)
        step = (lambda one=learner: plain_step(one, pool)) if not rows else (lambda one=learner: one.step(pool))
        measured(step, device)
        times, peaks = zip(*(measured(step, device) for _ in range(args.rounds)), strict=True)
        learner.remove()
        speed = args.batch / statistics.median(times)
        plain = plain or speed
        spread = (max(times) - min(times)) / statistics.median(times)
        peak = [f"{max(peaks):.2f}"] if device.type == "cuda" else []
        rows.append([name, f"{speed:.3g}", f"{speed / plain:.2f}", f"{spread:.0%}", *peak])
    titles = ["step", "samples a second", "against the plain loop", "spread of times", "peak GiB"][: len(rows[0])]
    print(f"{args.model}, {args.device}, {dtype}, batch {args.batch}, rank {args.rank}, n = {args.rounds}\n")
    print(markdown(titles, rows))


if __name__ == "__main__":
    main()
