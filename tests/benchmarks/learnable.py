"""How often "not learnable from this" is said wrongly, and how often it should have been said and was not.

    python -m tests.benchmarks.learnable > docs/measured/learnable.md

Whole calibrations run in a world in closed form (tests/helpers/dialled.py): a picture's odds of being liked are its
prompt's times e^shift, and the shift at LoRA weight 1 is what the table names. At 0 the LoRA has learned nothing, and
saying that it has is a false recommendation; elsewhere, saying that it has not is a false alarm.
"""

from __future__ import annotations

import datetime
import math
import platform
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.dialled import KnownDraws, judge_liked
from nft_pipeline.training.dial import calibrate as module

WORLDS = ((0.05, 0.04), (0.3, 0.15))  # base rate of the prompts, and its standard deviation between them
PICTURES = (400, 1000, 2400)
SHIFTS = (0.0, 0.25, 0.5, 1.0, 2.0)
PROMPTS, SEEDS = 96, 40


def prompts_of(mean: float, spread: float, seed: int) -> np.ndarray:
    """Base rates of the prompts of a world."""
    total = mean * (1 - mean) / spread**2 - 1
    rates = np.random.default_rng(seed).beta(mean * total, (1 - mean) * total, PROMPTS)
    return np.clip(rates, 1e-3, 1 - 1e-3)


def learned(mean: float, spread: float, pictures: int, shift: float, seed: int) -> bool:
    """Whether a calibration says that the share of liked pictures surely rises."""

    def shift_at(weight: float, mode: str, slope: float) -> float:
        return shift * math.tanh(weight) / math.tanh(1)

    draws = KnownDraws(prompts_of(mean, spread, seed), shift_at, "positive", seed=seed)
    module.read_noised = draws.alpha
    return module.calibrate(draws, judge_liked, module.Settings(pictures, "reward", "known")).learned


def main() -> None:
    machine = f"{platform.machine()} CPU, numpy {np.__version__}"
    print(f"""# "Not learnable from this": how often it is said, and how often wrongly

Made by `tests/benchmarks/learnable.py` on {datetime.date.today()} ({machine}), by whole calibrations in a world in
closed form: the odds of a picture are those of its prompt times e^shift. The shift grows with the LoRA weight, and the
table says what it is at weight 1. The base rates of the {PROMPTS} prompts are Beta distributed; the first column has their
mean, and in brackets their standard deviation.

The rule: a calibration says that something was learned if the share of liked pictures at the end of the map is above
that of the base model by {CERTAIN} standard errors of the former. Otherwise a run, `info`, the card and the nodes say "not
learnable from this", and recommend no strength.

An entry is how many of {SEEDS} calibrations said "learned". At shift 0 each of them is a false recommendation. At the
others the rest are false alarms: something was learned, and the pictures were too few to be sure of it.

| base rate | pictures | {" | ".join(f"shift {shift:g}" for shift in SHIFTS)} |
|---|---|{"---|" * len(SHIFTS)}""")
    totals = np.zeros(len(SHIFTS), dtype=int)
    for mean, spread in WORLDS:
        for pictures in PICTURES:
            counts = [sum(learned(mean, spread, pictures, shift, seed) for seed in range(SEEDS)) for shift in SHIFTS]
            totals += counts
            print(f"| {mean:g} ({spread:g}) | {pictures:,} | {' | '.join(map(str, counts))} |", flush=True)
    print(f"| all | | {' | '.join(f'{count} of {SEEDS * len(WORLDS) * len(PICTURES)}' for count in totals)} |")


if __name__ == "__main__":
    main()
