"""What online rounds reach beside what the run says (M8), with the learner's optimum exact in every round.

    python -m tests.benchmarks.anchor --write      # a few minutes of one core: docs/measured/anchor.md

The world is that of tests/helpers/mixture.py, so v_old and alpha are finite sums, and what a round learns is the
minimiser of the trainer's own loss. What is left is the law of the step: "nft" mixes velocities (M7), "odds" weighs the
pictures of the round (M10).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.fields import Rounds
from helpers.mixture import Mixture, noise_levels, ring, spread_noise
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.learn.objective import Objective
from nft_pipeline.training.settings.choices import STEP_LAWS, StepLaw

PAGE = Path(__file__).resolve().parents[2] / "docs" / "measured" / "anchor.md"
ANCHORS = ((1.0, 2.0, 5), (2.0, 2.0, 7), (4.0, 2.0, 9), (8.0, 4.0, 8))
FREE = ((None, 1.0, 3), (None, 2.0, 2))
LAST = 3  # rounds over which the spread is given


def liked(count: int) -> Mixture:
    """The ring with a reward of 1 for its `count` best pictures and 0 for the others."""
    world = ring()
    rewards = torch.zeros_like(world.rewards)
    rewards[world.rewards.topk(count).indices] = 1.0
    return replace(world, rewards=rewards)


def run(
    world: Mixture, law: StepLaw, eta0: float | None, eta1: float, rounds: int, count: int
) -> list[tuple[float, float]]:
    """(log-odds moved, mean reward) after each of the last rounds."""
    online = Rounds(world, Objective("policy", eta1, "alpha", eta0, step_law=law))
    reached = []
    for _ in range(rounds):
        online.step(spread_noise(count), noise_levels(14, 1e-2))
        reached.append((online.log_odds(), online.worlds[-1].mean_reward()))
    return reached[-LAST:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=512, help="samples per round (default: 512)")
    parser.add_argument("--write", action="store_true", help="write docs/measured/anchor.md")
    args = parser.parse_args()
    binary = []
    # So few samples cannot show the rates that a large tilt leads to from a rate that is high already.
    for world, points in ((liked(1), ANCHORS + FREE), (liked(6), ANCHORS[:3])):
        for eta0, eta1, rounds in points:
            said = Rounds(world, Objective("policy", eta1, "alpha", eta0)).promised(rounds)
            row = [f"{world.mean_reward():.3f}", "none" if eta0 is None else f"{eta0:g}", f"{eta1:g}", str(rounds)]
            row.append(f"{said:.2f}")
            for law in STEP_LAWS:
                moved = [shift for shift, _ in run(world, law, eta0, eta1, rounds, args.count)]
                row.append(f"{moved[-1]:.2f} ({min(moved):.2f} to {max(moved):.2f})")
                row.append(f"{moved[-1] / said - 1:+.0%}")
            binary.append(row)
            print(" ".join(row), flush=True)
    head = ["rate", "eta0", "tilt", "rounds", "the run says", "`nft`, last three", "off", "`odds`, last three", "off"]
    text = f"""# What anchored rounds reach

Made by `tests/benchmarks/anchor.py` on {date.today().isoformat()}, CPU, float64: 24 pictures in two dimensions, the
exact optimum of the trainer's loss in every round, {args.count} samples per round of 14 Heun steps. `old` is a copy.

Rewards of 0 and 1. The run says the accumulated tilt of M8. Measured is the shift of the rate's log-odds after the last
round, and in brackets its range over the last three rounds. Without an anchor it is meant to grow.

{markdown(head, binary)}

With `step_law: nft` (M7) the shift may be far from what the run says, to either side, and it swings between rounds.
With `step_law: odds` the last column says how far off each row is. It needs no pass of the base model.
"""
    print(text)
    if args.write:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
