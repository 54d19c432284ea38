"""How `old` and the exported average follow `theta`, and what tilt that adds up to. `old` samples for `theta`.

    old <- d old + (1 - d) theta        after every round; d = schedule(optimiser steps so far)

"copy" is d = 0. A number is used as d throughout. "ramp" and "late_ramp" are the two schedules of DiffusionNFT's
authors (arXiv:2509.16117): the first is their default, the second is what they use where the reward saturates early,
such as text rendering. With a larger d `old` is slower and steadier: the noise in theta averages out, and theta stays
within one tilt of it. A copy, in contrast, takes over every error of a round, and the next round adds its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from .. import authors
from ..settings.choices import Schedule
from ..settings.config import TrainConfig
from .objective import Objective

_DECAYS: dict[Schedule, Callable[[int], float]] = {
    "copy": lambda step: 0.0,
    "ramp": lambda step: min(0.001 * step, 0.5),
    "late_ramp": lambda step: 0.0 if step < 75 else min(0.0075 * (step - 75), 0.999),
}


def decay_after(old: str | float, step: int) -> float:
    """d after `step` optimiser steps; `old` is a schedule's name or a number in [0, 1)."""
    return _DECAYS[cast(Schedule, old)](step) if isinstance(old, str) else float(old)


def average_decay(step: int, config: TrainConfig) -> float:
    """Decay of the running average of theta after optimiser step number `step`, counted from 1.

    min(step / (step + 10), ema)            the average begins as a plain mean, not at its random start
    min((1 + step) / (10 + step), 0.9)      the authors' trainer
    """
    if config.authors_trainer:
        return min((1 + step) / (10 + step), authors.MOST_DECAY)
    return min(step / (step + 10), config.ema)


@dataclass(frozen=True)
class Tilt:
    """Accumulated tilt of `theta` and of `old` (M8), counting every round as converged: an upper bound in practice.

    theta:  L = w (L_old + eta1)        old:  L_old <- d L_old + (1 - d) L
    """

    theta: float = 0.0
    old: float = 0.0

    def after_round(self, objective: Objective, decay: float) -> Tilt:
        """The tilts after one more round: theta was trained from `old`, then `old` followed with d = `decay`."""
        theta = objective.weight * (self.old + objective.tilt)
        return Tilt(theta, decay * self.old + (1 - decay) * theta)
