"""Batches of noisy states that a step learns from, and how they are drawn from a pool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import authors
from ..bases.base import Conditions, TrainBase, rows_of
from ..bases.noising import NoiseLaw, interpolate, raw_target
from ..data.pool import Pool
from ..devices import processes
from .objective import States
from .posterior import plus_weight, posterior, with_mean_target


@dataclass(frozen=True)
class Batch:
    """States of drawn samples with their conditions, on the CPU.

    Args:
        table: the conditions of the pool's prompts, one row each: those of all samples would be too large.
        prompt: each sample's row in the table, (B,).
        rows: the samples' places in the pool, (B,).
        weight: the weights of their losses, (B,).
        bin: the bins of their noise levels in the law these were drawn from, (B,).
    """

    states: States
    table: Conditions
    prompt: Tensor
    rows: Tensor
    weight: Tensor
    bin: Tensor

    @property
    def conditions(self) -> Conditions:
        """One row for each sample."""
        return rows_of(self.table, self.prompt)

    def take(self, index: Tensor) -> Batch:
        """The rows of these indices, (n,), as a batch of their own."""
        s = self.states
        states = States(s.x_0[index], s.x_t[index], s.y[index], s.t[index], s.r[index], s.prediction)
        return Batch(states, self.table, self.prompt[index], self.rows[index], self.weight[index], self.bin[index])

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
        table = {name: value.to(device) for name, value in self.conditions.items()}
        prompt = torch.arange(len(self.rows))
        return Batch(states, table, prompt, self.rows, self.weight.to(device), self.bin)


def draw(
    base: TrainBase, pool: Pool, n: int, law: NoiseLaw, generator: torch.Generator, mass: Tensor | None = None
) -> Batch:
    """`n` states of samples drawn in proportion to `mass`, or evenly, at noise levels of `law`."""
    rows = pool.draw(n, generator, mass)
    low, high = base.noise_range()
    levels, weight, at = law.draw(n, generator)
    return _noised(base, pool, rows, low + (high - low) * levels, generator, weight, at)


def draw_in_turn(
    base: TrainBase, pool: Pool, n: int, levels: Tensor, turn: int, seed: int, generator: torch.Generator
) -> Batch:
    """Batch number `turn` of those by which the authors' trainer goes through the pictures of a round.

    Each picture comes in turn, in a random order, at `authors.LEVELS_SHARE` of the levels, which are drawn for it
    without replacement. When all have come, they come again in another order.

    Args:
        n: states in each batch.
        levels: the sampler's own, (L,).
        turn: counted from 0 in the round.
        seed: of the orders; the same in all batches of the round.
        generator: of the noise.
    """
    each = max(1, int(len(levels) * authors.LEVELS_SHARE))
    place = turn * n + torch.arange(n)
    rows, t = torch.empty(n, dtype=torch.int64), torch.empty(n)
    in_pass, number = place % (len(pool) * each), place // (len(pool) * each)
    for one in number.unique().tolist():
        order = torch.Generator().manual_seed(seed + one)
        picture = torch.randperm(len(pool), generator=order)
        level = torch.stack([torch.randperm(len(levels), generator=order) for _ in range(len(pool))])
        here = number == one
        at = in_pass[here] // each
        rows[here], t[here] = picture[at], levels[level[at, in_pass[here] % each]]
    return _noised(base, pool, rows, t, generator, torch.ones(n), torch.zeros(n, dtype=torch.int64))


def _noised(
    base: TrainBase, pool: Pool, rows: Tensor, t: Tensor, generator: torch.Generator, weight: Tensor, at: Tensor
) -> Batch:
    """States of these samples at noise levels t, (B,)."""
    x_0 = pool.x_0(rows)
    eps = torch.randn(x_0.shape, generator=generator)
    y = raw_target(base.prediction, x_0, eps, t)
    states = States(x_0, interpolate(x_0, eps, t)[0], y, t, pool.r[rows], base.prediction)
    return Batch(states, pool.conditions, pool.prompt[rows], rows, weight, at)


def fitted_to_means(batch: Batch, pool: Pool, border: Tensor) -> Batch:
    """A batch drawn by `plus_mass`, as v_plus is fitted to it: without the states that weigh nothing.

    Args:
        border: `borders` of the pool.
    """
    s, here = batch.states, border[batch.rows]
    is_wide = here.isfinite()
    if not is_wide.any():
        return batch
    x_0, alpha = posterior(pool, batch.rows, s.x_t, s.t)
    weight = plus_weight(alpha, here, float(pool.r.mean()))
    y = torch.where(is_wide.view(-1, *[1] * (s.y.ndim - 1)), with_mean_target(s, x_0), s.y)
    batch = replace(batch, states=replace(s, y=y), weight=batch.weight * weight / weight.mean())
    if processes.count() > 1:
        return batch  # with one model split over processes, all of them have to run as many forwards
    return batch.take(weight.nonzero().squeeze(1))
