"""v_plus where liked pictures are unlikely: states of all pictures, each with the mean of the liked ones as its target.

Pictures drawn in proportion to r make states in which a liked picture is likely. The sampler, with its errors, also
comes to states between a liked and a disliked picture, and there v_plus is farthest from v_old. With several pictures
of one prompt in the pool the target is known there too, whichever picture j made the state:

    alpha = sum_j w_j r_j,   E+[x_0 | x_t] = sum_j w_j r_j x_j / alpha,
    w_j = exp(-|x_t - (1 - t) x_j|^2 / (2 t^2)) / sum_k exp(-|x_t - (1 - t) x_k|^2 / (2 t^2)),

over the pool's pictures of that prompt (a stable target field, arXiv:2302.00670). The same mean takes the noise of
which picture was drawn out of the target. Half of a batch is drawn in proportion to r, half evenly, and each state is
weighed so that all states count alike from some alpha on, the border, and in proportion to alpha below. The border is
low where the prompt has many liked pictures. The mean of few of them at a state that is far from all says little.

This is for rewards of 0 and 1. Where r is graded, such a weight would need alpha itself, which the pool does not tell.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..bases.noising import per_sample, raw_target
from ..data.pool import Pool
from .objective import States

LEAST_LIKED = 4  # pictures of a prompt, for their mean to say anything that one of them does not say
MANY_LIKED = 20
BORDER, BORDER_OF_FEW = 0.001, 0.05  # of alpha; docs/measured/fully_on.md, and docs/training.md on few


def borders(pool: Pool) -> Tensor:
    """The alpha from which on the states of each picture's prompt count alike, float32 (N,); infinite where only states
    of liked pictures are drawn, because the prompt has too few of these or r is graded."""
    if not bool(((pool.r == 0) | (pool.r == 1)).all()) or len(pool.buckets) > 1:
        return torch.full((len(pool),), torch.inf)
    liked = torch.bincount(pool.prompt, weights=pool.r)[pool.prompt]
    some = torch.where(liked >= MANY_LIKED, BORDER, BORDER_OF_FEW)
    return torch.where(liked >= LEAST_LIKED, some, torch.inf).float()


def plus_mass(pool: Pool, border: Tensor) -> Tensor:
    """How often each picture is drawn, relative to the others, (N,); `border` is `borders` of the pool."""
    by_r = pool.r / pool.r.mean()
    return torch.where(border.isfinite(), (by_r + 1) / 2, by_r)


def plus_weight(alpha: Tensor, border: Tensor, mean_r: float) -> Tensor:
    """The weight of states that were drawn by `plus_mass`, (B,); `border` is that of their pictures, (B,)."""
    even = (alpha / border).clamp(max=1) / ((alpha / mean_r + 1) / 2)
    return torch.where(border.isfinite(), even, torch.full_like(alpha, mean_r))


def posterior(pool: Pool, rows: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """E+[x_0 | x_t], float32 (B, ...), and alpha, float32 (B,), from the pool's pictures of each state's prompt.

    Where alpha is 0, so that no liked picture is possible, the picture is the state's own.

    Args:
        pool: the scored pictures, of one size.
        rows: the pictures the states were made of, (B,).
        x_t: noisy states, (B, ...).
        t: noise levels in (0, 1], (B,).
    """
    x_0, alpha = pool.x_0(rows), torch.empty(len(rows))
    prompts = pool.prompt[rows]
    for prompt in prompts.unique().tolist():
        at, of_prompt = (prompts == prompt).nonzero().squeeze(1), (pool.prompt == prompt).nonzero().squeeze(1)
        # In double precision: at low noise the exponents are large and their differences small.
        pictures, r = pool.x_0(of_prompt).double().flatten(1), pool.r[of_prompt].double()
        state, level = x_t[at].double().flatten(1), t[at].double().clamp(min=1e-4)[:, None]
        exponent = (1 - level) * (state @ pictures.T) - (1 - level).square() * pictures.square().sum(1) / 2
        liked = (exponent / level.square()).softmax(1) * r
        total = liked.sum(1, keepdim=True)
        mean = ((liked / total.clamp(min=1e-300)) @ pictures).float().view_as(x_0[at])
        x_0[at] = torch.where(per_sample(total.squeeze(1) > 0, mean) > 0, mean, x_0[at])
        alpha[at] = total.squeeze(1).float()
    return x_0, alpha


def with_mean_target(states: States, x_0: Tensor) -> Tensor:
    """The network's target at these states if they came from the pictures `x_0`, (B, ...): y of the states' shape."""
    moved = x_0 - states.x_0
    t = per_sample(states.t, moved).clamp(min=1e-4)
    # At a given x_t the noise moves against the picture; raw targets are linear in both.
    return states.y + raw_target(states.prediction, moved, -(1 - t) / t * moved, states.t)
