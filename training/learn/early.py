"""Early stopping: looks at samples that a run does not learn from, and the weights that were best there.

Every twentieth of a run the losses are taken on held-out samples, always at the same states. With a cross-validated
head (folds.py), where no sample is held out of everything, it is the mean loss of alpha on the pictures that each head
leaves out. After `stop_early` looks without gain the run is over.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..bases.noising import interpolate, raw_target
from ..data.pool import Pool
from .learner import Learner
from .objective import States, alpha_loss

LOOKS = 20
STATES, SEED = 128, 880_001


class EarlyStop:
    """Watches one run.

    Args:
        learner: with `stop_early` above 0 in its settings.
        held_out: samples that it does not learn from; None where its head is cross-validated.
    """

    def __init__(self, learner: Learner, held_out: Pool | None) -> None:
        self.learner, self.held_out = learner, held_out
        self.every = max(1, learner.config.total_steps // LOOKS)
        self.best: tuple[float, int, list[Tensor]] | None = None  # loss, step, and the averages that had it
        self._met: list[float] = []

    @property
    def is_over(self) -> bool:
        """Whether the last looks brought no gain."""
        if self.best is None:
            return False
        return self.learner.step_number - self.best[1] >= self.learner.config.stop_early * self.every

    def after_step(self, losses: dict[str, float]) -> None:
        """Look, if a look is due after this step."""
        learner = self.learner
        self._met += [losses["alpha held out"]] if "alpha held out" in losses else []
        if learner.step_number % self.every:
            return
        loss = held_out_loss(learner, self.held_out) if self.held_out is not None else _mean(self._met)
        self._met = []
        if loss is not None and (self.best is None or loss < self.best[0]):
            self.best = loss, learner.step_number, [average.clone() for average in learner.average]

    def use_best(self) -> None:
        """Put the averages that were best in the place of the last ones."""
        if self.best is not None:
            self.learner.average = [average.clone() for average in self.best[2]]

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on needs."""
        return {"best": None if self.best is None else list(self.best), "met": self._met}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self._met, best = list(state["met"]), state["best"]
        if best is not None:
            self.best = best[0], best[1], [average.to(self.learner.device) for average in best[2]]


@torch.no_grad()
def held_out_loss(learner: Learner, pool: Pool) -> float:
    """The losses on samples of a pool, always at the same states: of alpha, and of v_plus in proportion to r."""
    base, generator = learner.base, torch.Generator().manual_seed(SEED)
    rows = torch.randperm(len(pool), generator=generator)[:STATES]
    rows = rows[pool.bucket[rows] == pool.bucket[rows[0]]]
    low, high = base.noise_range()
    t = low + (high - low) * torch.rand(len(rows), generator=generator)
    x_0 = pool.x_0(rows)
    eps = torch.randn(x_0.shape, generator=generator)
    x_t, conditions = interpolate(x_0, eps, t)[0], pool.conditions_of(rows)
    states = States(x_0, x_t, raw_target(base.prediction, x_0, eps, t), t, pool.r[rows], base.prediction)
    alpha = learner.alpha(x_t, t, conditions).cpu().clamp(1e-6, 1 - 1e-6)
    learner.roles.use("theta")
    output = base.predict_rows(x_t, t, conditions, learner.micro_batch or learner.config.batch)
    plus = (states.r * learner.objective.loss(output.float(), states)).sum() / states.r.sum().clamp(min=1e-6)
    return float(alpha_loss(torch.logit(alpha), states.r).mean() + plus)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
