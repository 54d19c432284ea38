"""How far the promise of a calibration by hand is off, with and without the ratings that the person gave before.

    python -m tests.benchmarks.by_hand            # prints the table; five minutes of one core
    python -m tests.benchmarks.by_hand --write    # writes docs/measured/by_hand.md, too

Nothing is drawn by a model and nobody rates: the pictures are those of tests/helpers/dialled.py, liked by a known law
of the LoRA's weight, and one in ten ratings is a slip. The sweep, its list and its ratings go through the code of
`calibrate --by-hand`.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from helpers.dialled import KnownDraws
from nft_pipeline.dial.scale import weight_of
from nft_pipeline.files.picture_list import read_rows, update_rows
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.dial.by_hand import PICTURES, Rating, calibrate_by_hand, draw_for_rating
from nft_pipeline.training.dial.draws import Drawn

DOCS = Path(__file__).parents[2] / "docs"
RATES, REACHED = (0.15, 0.3, 0.5), 3.5  # base rates, and the tilt with the LoRA fully on
SPREADS = (0.0, 0.15)  # the standard deviation between prompts
BEFORE = (0, 40, 64, 200)  # ratings that were given to train on
TILTS = (0.0, 0.5, 1.0, 2.0, 4.0)
PROMPTS, SLIPS = 60, 0.1


class Rateable(KnownDraws):
    """Pictures whose first pixel says whether they are liked, for a person who slips."""

    def draw(self, *args: Any, **kwargs: Any) -> Drawn:
        drawn = super().draw(*args, **kwargs)
        drawn.pictures[:, 0, 0, 0] = 255 * drawn.latents[:, 0].numpy().astype(np.uint8)
        return drawn


def rates_of(rate: float, spread: float, count: int, seed: int) -> np.ndarray:
    """Base rates of prompts, Beta distributed."""
    if spread == 0:
        return np.full(count, rate)
    total = rate * (1 - rate) / spread**2 - 1
    drawn = np.random.default_rng(seed).beta(rate * total, (1 - rate) * total, count)
    return np.clip(drawn, 1e-3, 1 - 1e-3)


def answer(weight: float, mode: str, slope: float) -> float:
    """The tilt that a weight gives."""
    return REACHED * math.tanh(1.5 * weight) / math.tanh(1.5)


def as_rated(rate: float) -> float:
    """The share of pictures that are rated as liked, slips among them."""
    return SLIPS + (1 - 2 * SLIPS) * rate


def world(rates: np.ndarray, seed: int) -> Rateable:
    draws = Rateable(rates, answer, "positive", seed=seed)
    draws.base.call = {"num_inference_steps": 4}
    return draws


def misses(rate: float, spread: float, befores: Sequence[int], seed: int, folder: Path) -> list[list[float]]:
    """For each number of earlier ratings, how far the share of liked pictures is off the promise at `TILTS`."""
    random = np.random.default_rng([seed, 1])
    draws = world(rates_of(rate, spread, PROMPTS, 2 * seed), seed)
    draw_for_rating(draws, folder, seed)
    seen = {row["image"]: np.asarray(Image.open(folder / row["image"]))[0, 0, 0] > 127 for row in read_rows(folder)}
    update_rows(folder, {name: {"liked": bool(liked != (random.random() < SLIPS))} for name, liked in seen.items()})
    trained_on = world(rates_of(rate, spread, max(befores), 2 * seed + 1), seed + 10**6)
    drawn = trained_on.draw([(place, place) for place in range(max(befores))], 0.0, "single", 0.0)
    liked = drawn.latents[:, 0].numpy().astype(bool) ^ (random.random(max(befores)) < SLIPS)
    others = rates_of(rate, spread, 20_000, 10**6)
    found = []
    for count in befores:
        before: list[Rating] = [(f"earlier {place}", bool(liked[place])) for place in range(count)]
        result = calibrate_by_hand(draws, folder, before)  # type: ignore[arg-type]
        own = result.dial.own
        asked = [float(np.clip(tilt, own.lowest, own.highest)) for tilt in TILTS]
        true = [
            as_rated(draws.true_rate(float(weight_of(own, torch.tensor([tilt]))[0]), rates=others)) for tilt in asked
        ]
        found.append([t - float(np.interp(tilt, own.tilts, own.rates)) for t, tilt in zip(true, asked, strict=True)])
    return found


def table(count: int) -> str:
    """A line for each world and number of earlier ratings: the root mean square at each tilt."""
    rows = []
    cells = list(itertools.product(RATES, SPREADS))
    with tqdm(total=len(cells) * count, unit="calibration") as bar:
        for rate, spread in cells:
            found = []
            for seed in range(count):
                with tempfile.TemporaryDirectory() as folder:
                    found.append(misses(rate, spread, BEFORE, seed, Path(folder) / "sweep"))
                bar.update()
            off = np.array(found)  # (worlds, numbers of ratings, tilts)
            for place, before in enumerate(BEFORE):
                errors = np.sqrt((off[:, place] ** 2).mean(0))
                worst = float((np.abs(off[:, place]).max(1) > 0.15).mean())
                shown = [f"{error:.3f}" for error in errors]
                rows.append([f"{as_rated(rate):.2f}", f"{spread:.2f}", f"{before}", *shown, f"{worst:.2f}"])
    head = ["base rate, as rated", "spread between prompts", "ratings before"]
    return markdown([*head, *(f"off at tilt {tilt:g}" for tilt in TILTS), "off by more than 0.15 somewhere"], rows)


def page(count: int) -> str:
    """docs/measured/by_hand.md."""
    return f"""# A calibration by hand, and the ratings from before

Made by `python -m tests.benchmarks.by_hand --write` on {date.today().isoformat()}. Nothing is drawn by a model here,
and nobody rates: in these worlds the share of liked pictures is a known function of the LoRA's weight, and a rating is
the opposite of what is meant in {SLIPS:.0%} of the cases. A sweep is {PICTURES} pictures at four weights,
{PICTURES // 4} of them at weight 0, which is the base model. "Ratings before" is the number of the base model's
pictures that the person had rated to train on, of other prompts; 0 is the sweep alone. Each row stands for {count}
calibrations. "Off" is the root mean square of the share that would be rated as liked, for prompts that were not
calibrated on, less the promise, at this tilt or at the end of the reach. With the LoRA fully on the tilt is
{REACHED:g}, and at half of its weight it is most of that. The last column is the share of calibrations that are off by
more than 0.15 at any of these tilts.

{table(count)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="calibrations per world (default: 100)")
    parser.add_argument("--write", action="store_true", help="write the page")
    args = parser.parse_args()
    text = page(args.count)
    print(text)
    if args.write:
        (DOCS / "measured/by_hand.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
