"""How often a calibration says that something was learned, in worlds where the truth is known.

    python tests/benchmarks/learnable.py            # prints the table; fifteen minutes of one core
    python tests/benchmarks/learnable.py --write    # writes docs/measured/learnable.md, too

Nothing is drawn: the pictures are those of tests/helpers/dialled.py, liked by a known law of the LoRA's weight. So a
thousand calibrations can be counted, where a model allows a few.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable
from datetime import date
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from tqdm import tqdm

from helpers.dialled import KnownDraws, judge_liked
from nft_pipeline.dial.promise import mean_promise
from nft_pipeline.dial.scale import weight_of
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.dial import calibrate as module
from nft_pipeline.training.dial.calibrate import Settings, calibrate

DOCS = Path(__file__).parents[2] / "docs"
RATES = (0.05, 0.3, 0.6)
REACHED = (0.0, 0.5, 1.0, 2.0, 3.0)  # the tilt with the LoRA fully on
PICTURES = (400, 1200, 2400)
TILTS = (-1.0, 0.5, 1.0, 2.0)
PROMPTS, SPREAD = 96, 0.4  # the standard deviation between prompts, as a part of the largest that a rate allows


def rates_of(rate: float, count: int, seed: int) -> np.ndarray:
    """Base rates of prompts, Beta distributed."""
    total = 1 / SPREAD**2 - 1
    drawn = np.random.default_rng(seed).beta(rate * total, (1 - rate) * total, count)
    return np.clip(drawn, 1e-3, 1 - 1e-3)


def answer(reached: float) -> Callable[[float, str, float], float]:
    """The tilt that a weight gives: nothing more is to be had far beyond 1, as of a LoRA."""
    return lambda weight, mode, slope: reached * math.tanh(1.5 * weight) / math.tanh(1.5)


def one(rate: float, reached: float, pictures: int, seed: int) -> tuple[bool, list[float]]:
    """Whether the calibration says that something was learned, and, if so, how far the truth is off its promise at
    `TILTS`, as far as it reaches."""
    draws = KnownDraws(rates_of(rate, PROMPTS, seed), answer(reached), "positive", seed=seed)
    with mock.patch.object(module, "read_noised", draws.alpha):
        found = calibrate(draws, judge_liked, Settings(pictures, "reward", "known"))  # type: ignore[arg-type]
    if not found.learned:
        return False, []
    entry, others = found.dial.own, rates_of(rate, 20_000, 10**6)
    off = []
    for tilt in TILTS:
        asked = float(np.clip(tilt, entry.lowest, entry.highest))
        weight = float(weight_of(entry, torch.tensor([asked]))[0])
        true = draws.true_rate(weight, entry.mode, entry.slope, others)
        off.append(true - mean_promise(rate, SPREAD * math.sqrt(rate * (1 - rate)), asked))
    return True, off


def table(count: int) -> str:
    """One line per world, with all budgets."""
    rows = []
    cells = list(itertools.product(RATES, REACHED))
    with tqdm(total=len(cells) * len(PICTURES) * count, unit="calibration") as bar:
        for rate, reached in cells:
            full = KnownDraws(rates_of(rate, 20_000, 10**6), answer(reached)).true_rate(1.0)
            row = [f"{rate:.2f}", f"{full:.3f}"]
            for pictures in PICTURES:
                results = []
                for seed in range(count):
                    results.append(one(rate, reached, pictures, seed))
                    bar.update()
                off = np.array([miss for learned, misses in results if learned for miss in misses])
                said = float(np.mean([learned for learned, _ in results]))
                row += [f"{said:.2f}", f"{np.sqrt((off**2).mean()):.3f}" if reached and len(off) else ""]
            rows.append(row)
    head = ["base rate", "rate with the LoRA fully on"]
    for pictures in PICTURES:
        head += [f"{pictures:,} pictures: says learned", "off by"]
    return markdown(head, rows)


def page(count: int) -> str:
    """docs/measured/learnable.md."""
    return f"""# How often a calibration says that something was learned

Made by `tests/benchmarks/learnable.py` on {date.today().isoformat()}. Nothing is drawn here: in these worlds the share
of liked pictures is a known function of the LoRA's weight, so that calibrations can be counted whose truth is known.
Each entry stands for {count} calibrations of {PROMPTS} prompts, whose base rates differ by {SPREAD:g} of the largest
standard deviation that their mean allows. "Says learned" is the share of calibrations that found a weight which surely
raises the share of liked pictures. Where the LoRA does nothing, the two rates are equal, and each "learned" is false.
Where it does something, each missing one is a false alarm, or a LoRA that does less than so many pictures can show.
"Off by" is the root mean square of what is drawn less what is promised at tilts
{", ".join(f"{tilt:+g}" for tilt in TILTS)}, or at the end of the
adapter's reach, for prompts that were not calibrated on.

{table(count)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="calibrations per entry (default: 100)")
    parser.add_argument("--write", action="store_true", help="write the page")
    args = parser.parse_args()
    text = page(args.count)
    print(text)
    if args.write:
        (DOCS / "measured/learnable.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
