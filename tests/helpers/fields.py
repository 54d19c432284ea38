"""Velocity fields over the closed-form world, learned through the trainer's own losses.

All pictures of the world are possible at every noisy state, each with its posterior, so the expectation of a loss is a
finite sum. What is left to learn is the field: by a small network (`train`), or state by state (`minimiser`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from helpers.mixture import Mixture, solve_ode
from nft_pipeline.training.learn.maths import accumulated_tilt
from nft_pipeline.training.learn.objective import Objective, States

Field = Callable[[Tensor, float], Tensor]
LEVELS = (0.35, 0.5, 0.65, 0.8, 0.92)


@dataclass(frozen=True)
class Grid:
    """Noisy states x (M, 2) at levels t (M,), with the posterior p (M, N) and what is true there."""

    world: Mixture
    x: Tensor
    t: Tensor
    p: Tensor
    v_old: Tensor
    v_plus: Tensor
    alpha: Tensor
    delta: Tensor

    @property
    def states(self) -> States:
        """Every pair of state and picture, (M N, ...)."""
        count = len(self.world.points)
        x, t = self.x.repeat_interleave(count, 0), self.t.repeat_interleave(count)
        x_0 = self.world.points.repeat(len(self.x), 1)
        return States(x_0=x_0, x_t=x, y=(x - x_0) / t[:, None], t=t, r=self.world.rewards.repeat(len(self.x)))

    def each(self, field: Tensor) -> Tensor:
        """(M, ...) for every pair."""
        return field.repeat_interleave(len(self.world.points), 0)

    def mean(self, loss: Tensor) -> Tensor:
        """Expectation of a loss of all pairs (M N,)."""
        return (self.p.flatten() * loss).sum() / len(self.x)

    def error(self, field: Tensor, delta: Tensor | None = None) -> float:
        """Size of field - delta relative to that of delta, Cov(r, y) if not given, over all states."""
        delta = self.delta if delta is None else delta
        return float(((field.detach() - delta).square().sum() / delta.square().sum()).sqrt())


def grid(world: Mixture, each: int, seed: int) -> Grid:
    """`each` states at each of LEVELS."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for level in LEVELS:
        x = world.samples(each, level, generator)
        v_old, v_plus, alpha = world.moments(x, level)
        t = torch.full((each,), level, dtype=x.dtype)
        parts.append((x, t, world.posterior(x, 1 - level, level), v_old, v_plus, alpha, world.delta(x, level)))
    return Grid(world, *(torch.cat(column) for column in zip(*parts, strict=True)))


def network(outputs: int, seed: int = 0, width: int = 64) -> nn.Module:
    """A small smooth network of (x, t) for fields and logits."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs)
    ).double()
    nn.init.zeros_(net[-1].weight)
    return net


def evaluate(net: nn.Module, where: Grid) -> Tensor:
    t = where.t[:, None]
    return net(torch.cat([where.x, where.x / t, t], 1))


def train(net: nn.Module, loss: Callable[[], Tensor], steps: int) -> None:
    """Descend a deterministic loss."""
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=steps, history_size=30, line_search_fn="strong_wolfe", tolerance_change=1e-12
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def minimiser(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Where a loss a state, (M, D) -> (M,), is least, if it is a parabola alike in all directions: one Newton step.

    For a loss that is nearly one, a step of a fixed-point iteration.
    """
    small = 1e-3

    def gradient(v: Tensor) -> Tensor:
        v = v.detach().requires_grad_()
        return torch.autograd.grad(loss(v).sum(), v)[0]

    at_start = gradient(start)
    curvature = (gradient(start + small) - at_start).mean(1, keepdim=True) / small
    return start - at_start / curvature


class Rounds:
    """Online rounds with an exact learner: sample with v_old, learn the objective's minimiser, take it as v_old."""

    def __init__(self, world: Mixture, objective: Objective) -> None:
        self.objective, self.worlds, self.base = objective, [world], world

    def velocity(self, x: Tensor, t: float) -> Tensor:
        """v after all finished rounds."""
        ref = self.base.v_old(x, t)
        v = ref
        for number, world in enumerate(self.worlds[:-1]):
            v = self._learn(world, x, t, v, ref, self.promised(number))
        return v

    def promised(self, rounds: int) -> float:
        """The tilt that a run says it has after so many rounds (M8)."""
        return accumulated_tilt(self.objective.tilt, rounds, self.objective.eta0)

    def _learn(self, world: Mixture, x: Tensor, t: float, old: Tensor, ref: Tensor, reached: float) -> Tensor:
        count = len(world.points)
        p = world.posterior(x, 1 - t, t)
        pairs, x_0 = x.repeat_interleave(count, 0), world.points.repeat(len(x), 1)
        levels = torch.full((len(pairs),), t, dtype=x.dtype)
        states = States(x_0, pairs, (pairs - x_0) / t, levels, world.rewards.repeat(len(x)))
        alpha = (p @ world.rewards).repeat_interleave(count)
        anchor = ref.repeat_interleave(count, 0) if self.objective.needs_ref else None
        fixed = {"old": old.repeat_interleave(count, 0), "ref": anchor, "baseline": alpha, "reached": reached}

        def loss(v: Tensor) -> Tensor:
            each = self.objective.loss(v.repeat_interleave(count, 0), states, **fixed)
            return (p * each.view_as(p)).sum(1)

        return minimiser(loss, old)

    def step(self, noise: Tensor, levels: list[float]) -> float:
        """One round; returns the tilt of what the new model draws: the slope of log p / p_0 in r.

        For rewards of 0 and 1 `log_odds` is the shift of the rate itself.
        """
        self.worlds.append(self.worlds[-1])
        landed = self.base.landed(solve_ode(self.velocity, noise, levels), levels[-1])
        self.worlds[-1] = self.base.weighted(landed / self.base.prior)
        ratio, r, p = (landed / self.base.prior).log(), self.base.rewards, self.base.prior
        r = r - p @ r
        return float((p * r) @ ratio / (p @ (r * r)))

    def log_odds(self) -> float:
        """How far the rounds have moved the log-odds of the mean reward."""
        before, after = (world.mean_reward() for world in (self.base, self.worlds[-1]))
        if after >= 1:
            return math.inf  # no sample is left that is not liked
        return math.log(after / (1 - after)) - math.log(before / (1 - before))
