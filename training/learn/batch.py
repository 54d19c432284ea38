"""Batches of noisy states that a step learns from, and how they are drawn from a pool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..bases.base import Conditions, TrainBase
from ..bases.noising import NoiseLaw, interpolate, raw_target
from ..data.pool import Pool
from ..devices import processes
from .objective import States
from .posterior import plus_weight, posterior, with_mean_target


@dataclass(frozen=True)
class Batch:
    """States of drawn samples with their conditions, on the CPU.

    Args:
        rows: the samples' places in the pool, (B,).
        weight: the weights of their losses, (B,).
        bin: the bins of their noise levels in the law these were drawn from, (B,).
    """

    states: States
    conditions: Conditions
    rows: Tensor
    weight: Tensor
    bin: Tensor

    def take(self, index: Tensor) -> Batch:
        """The rows of these indices, (n,), as a batch of their own."""
        s = self.states
        states = States(s.x_0[index], s.x_t[index], s.y[index], s.t[index], s.r[index], s.prediction)
        conditions = {name: value[index] for name, value in self.conditions.items()}
        return Batch(states, conditions, self.rows[index], self.weight[index], self.bin[index])

    def parts(self, size: int) -> Iterator[tuple[Tensor, Batch]]:
        """This process's share in parts of at most `size` samples (0: one part), each with its places in the batch."""
        mine = torch.arange(processes.rank(), len(self.rows), processes.count())
        for index in mine.split(size or max(1, len(mine))):
            yield index, self.take(index)

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; row numbers and noise bins stay where they are."""
        s = self.states
        x_0, x_t, y, t, r = (value.to(device) for value in (s.x_0, s.x_t, s.y, s.t, s.r))
        states = States(x_0, x_t, y, t, r, s.prediction)
        conditions = {name: value.to(device) for name, value in self.conditions.items()}
        return Batch(states, conditions, self.rows, self.weight.to(device), self.bin)


def draw(
    base: TrainBase, pool: Pool, n: int, law: NoiseLaw, generator: torch.Generator, mass: Tensor | None = None
) -> Batch:
    """`n` states of samples drawn in proportion to `mass`, or evenly, at noise levels of `law`."""
    rows = pool.draw(n, generator, mass)
    low, high = base.noise_range()
    levels, weight, at = law.draw(n, generator)
    t = low + (high - low) * levels
    x_0 = pool.x_0(rows)
    eps = torch.randn(x_0.shape, generator=generator)
    y = raw_target(base.prediction, x_0, eps, t)
    states = States(x_0, interpolate(x_0, eps, t)[0], y, t, pool.r[rows], base.prediction)
    return Batch(states, pool.conditions_of(rows), rows, weight, at)


def fitted_to_means(batch: Batch, pool: Pool, wide: Tensor) -> Batch:
    """A batch drawn by `plus_mass`, as v_plus is fitted to it: without the states that weigh nothing.

    Args:
        wide: `wide_prompts` of the pool.
    """
    s, here = batch.states, wide[batch.rows]
    if not here.any():
        return batch
    x_0, alpha = posterior(pool, batch.rows, s.x_t, s.t)
    weight = plus_weight(alpha, here, float(pool.r.mean()))
    y = torch.where(here.view(-1, *[1] * (s.y.ndim - 1)), with_mean_target(s, x_0), s.y)
    batch = replace(batch, states=replace(s, y=y), weight=batch.weight * weight / weight.mean())
    if processes.count() > 1:
        return batch  # with one model split over processes, all of them have to run as many forwards
    return batch.take(weight.nonzero().squeeze(1))
