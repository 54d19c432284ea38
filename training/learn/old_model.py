"""How `old`, the model that samples and that a step is measured from, follows `theta`, and what tilt that adds up to.

    old <- d old + (1 - d) theta        after every round; d = schedule(optimiser steps so far)

"copy" is d = 0, and a number is that d throughout. "ramp" and "late_ramp" are the two schedules of DiffusionNFT's
authors (arXiv:2509.16117): the first is their default, the second what they use where the reward saturates early, such
as text rendering. A larger d is a slower and steadier `old`: theta's noise averages out of it, and theta is held to
what is one tilt away from it, where a copy takes over every error of a round and the next one adds its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from ..settings.choices import Schedule
from .objective import Objective

_DECAYS: dict[Schedule, Callable[[int], float]] = {
    "copy": lambda step: 0.0,
    "ramp": lambda step: min(0.001 * step, 0.5),
    "late_ramp": lambda step: 0.0 if step < 75 else min(0.0075 * (step - 75), 0.999),
}


def decay_after(old: str | float, step: int) -> float:
    """d after so many optimiser steps, of a schedule's name or a number in [0, 1)."""
    return _DECAYS[cast(Schedule, old)](step) if isinstance(old, str) else float(old)


@dataclass(frozen=True)
class Tilt:
    """Accumulated tilt of `theta` and of `old` (M8), counting every round as converged: an upper bound in practice.

    theta:  L = w (L_old + eta1)        old:  L_old <- d L_old + (1 - d) L
    """

    theta: float = 0.0
    old: float = 0.0

    def after_round(self, objective: Objective, decay: float) -> Tilt:
        """After a round trained from `old`, and `old` having followed with this d."""
        theta = objective.weight * (self.old + objective.tilt)
        return Tilt(theta, decay * self.old + (1 - decay) * theta)
