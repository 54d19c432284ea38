"""What looking early buys: the k of N seeds that alpha likes best after a few steps, against finishing all of them.

    python tests/benchmarks/seed_scout.py --work runs/seed_scout               # 600 groups of 16 seeds
    python tests/benchmarks/seed_scout.py --work runs/seed_scout --groups 100  # a look

Each group is one held-out prompt of shapes-warm. All 16 noises of a group are drawn to the end by the base model, with
alpha read in every step; every row of the table is worked out from that. Writes docs/measured/seed_scout.md, or, with
--no-docs, into --work.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from datetime import date
from math import comb
from pathlib import Path

import numpy as np
import torch

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.files.atomic import atomic_write_bytes
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.devices.precision import autocast, choose_precision
from nft_pipeline.training.rewards.find import find_prompts, find_reward

DOCS = Path(__file__).parents[2] / "docs"
SEED, NOISES, STEPS, GROUPS_AT_ONCE = 70_000, 16, 14, 16
ROWS = [(n, k) for n in (4, 8, 16) for k in (1, 2, 4) if k < n]
AFTER = (1, 2, 3, 4)


def draw(groups: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of one batch of groups after the other: liked, bool (groups, noises), and alpha, (steps, groups, noises)."""
    prompts, reward = find_prompts("shapes_warm_held_out"), find_reward("shapes_warm")
    pipe = DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter="shapes-warm")
    pipe.set_progress_bar_config(disable=True)
    dtype, _ = choose_precision("auto", torch.device("cpu"))
    for start in range(0, groups, GROUPS_AT_ONCE):
        rows = [(g, c) for g in range(start, min(start + GROUPS_AT_ONCE, groups)) for c in range(NOISES)]
        texts = [prompts[g % len(prompts)] for g, _ in rows]
        noises = [torch.Generator().manual_seed(SEED + g * NOISES + c) for g, c in rows]
        # A strength that moves nothing has alpha read, and costs one forward per step.
        look = {"nft_strength": 1e-9, "nft_law": "nft", "nft_mode": "single"}
        with autocast(torch.device("cpu"), dtype):
            drawn = pipe(prompt=texts, generator=noises, num_inference_steps=STEPS, output_type="np", **look)
        pictures = (drawn.images * 255).round().astype(np.uint8)
        shape = (-1, NOISES)
        yield (reward(pictures, texts) > 0.5).reshape(shape), pipe.nft_stats.alpha.numpy().reshape(STEPS, *shape)
        print(f"{start} of {groups} groups", flush=True)


def scouted(liked: np.ndarray, alpha: np.ndarray, n: int, k: int) -> tuple[float, float]:
    """Share of liked pictures among the k of n noises with the highest alpha, and its standard error over groups.

    Args:
        liked: (groups, noises).
        alpha: after some step, of the same shape; noises are taken n by n.
        n: tried.
        k: kept.
    """
    by_n = alpha.reshape(-1, n).argsort(1)[:, ::-1][:, :k]
    rates = np.take_along_axis(liked.reshape(-1, n), by_n, 1).mean(1).reshape(len(liked), -1).mean(1)
    return float(rates.mean()), float(rates.std(ddof=1) / len(rates) ** 0.5)


def finished(liked: np.ndarray, m: int, k: int) -> float:
    """Share of liked pictures among the best k of m finished ones: the mean over all choices of m noises."""
    total = liked.shape[1]
    chances = [
        sum(min(k, hits) * comb(some, hits) * comb(total - some, m - hits) for hits in range(m + 1))
        for some in liked.sum(1).tolist()
    ]
    return float(np.mean(chances)) / comb(total, m) / k


def table(liked: np.ndarray, alpha: np.ndarray) -> str:
    """The rows of all settings, as Markdown, and below it in how many of them looking early is better."""
    rows, better = [], 0
    for n, k in ROWS:
        best = [finished(liked, m, k) for m in range(k, NOISES + 1)]
        for after in AFTER:
            rate, error = scouted(liked, alpha[after - 1], n, k)
            forwards = n * after + k * STEPS
            as_many = float(np.interp(forwards / STEPS, range(k, NOISES + 1), best))
            better += rate > as_many
            if rate > best[-1]:
                needed = f"more than {NOISES * STEPS}"
            else:
                needed = f"{STEPS * float(np.interp(rate, best, range(k, NOISES + 1))):.0f}"
            own = [str(k), str(n), str(after), str(forwards), f"{rate:.3f} ± {error:.3f}"]
            rows.append([*own, f"{as_many:.3f}", needed, f"{finished(liked, n, k):.3f} ({n * STEPS})"])
    head = ["kept", "of", "after step", "forwards", "liked", "best of as many forwards", "forwards to be as good"]
    words = f"In {better} of {len(rows)} rows more is liked than of the best of as many forwards."
    return markdown([*head, "all of them finished (forwards)"], rows) + f"\n\n{words}"


def page(liked: np.ndarray, alpha: np.ndarray) -> str:
    """docs/measured/seed_scout.md."""
    return f"""# Seed scout: what looking early buys

Made by `tests/benchmarks/seed_scout.py` on {date.today()} ({platform.machine()} CPU, bf16, torch {torch.__version__}).
The model is shapes without guidance, 64 px, {STEPS} steps; alpha is that of shapes-warm; {len(liked)} groups, each
of {NOISES} noises of one held-out prompt. A picture is liked if everything drawn is red or orange, which
{liked.mean():.3f} of all pictures are.

"kept k of N after step j" takes j steps of N noises, keeps the k with the highest alpha and draws those from their
first step, which costs N j + {STEPS} k forwards and needs no reward. This is what Reward Early Choice does in ComfyUI
with `among` set to the whole batch (k pictures in the latent, N / k candidates), and `nft_candidates` in Python with
k = 1. Set beside it is drawing pictures to the end and letting the reward itself choose the best k:

- **best of as many forwards**: the share liked, if the same forwards draw pictures to the end, of which the reward
  keeps the best k; between whole numbers of pictures it is a straight line.
- **forwards to be as good**: what that way needs for the share of liked pictures of the row.
- **all of them finished**: the share liked of the best k of all N, at N times {STEPS} forwards.

{table(liked, alpha)}

The reward as judge is exact, and alpha is not: the way beside it is one that a person has only by looking at every
picture. Errors are those over groups; a row is computed from all {NOISES} noises of each group, N by N.
"""


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of what was measured")
    parser.add_argument("--groups", type=int, default=600, help="prompts, in turn (default 600)")
    parser.add_argument("--no-docs", action="store_true", help="write the page into --work")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    kept = args.work / f"drawn_{args.groups}.npz"
    if not kept.is_file():
        liked, alpha = zip(*draw(args.groups), strict=True)
        np.savez(kept, liked=np.concatenate(liked), alpha=np.concatenate(alpha, 1))
    drawn = np.load(kept)
    path = (args.work if args.no_docs else DOCS / "measured") / "seed_scout.md"
    atomic_write_bytes(path, page(drawn["liked"], drawn["alpha"]).encode())
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
