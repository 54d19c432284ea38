"""How far alpha is to be trusted: a logistic fit of r on alpha's logit, on states made of pictures it has not seen.

    logit E[r] = a (logit alpha + o(t)) + (1 - a) logit p

The states are held-out pictures of the base model with noise added, which is the coupling that alpha is about; a path
of the sampler would not do, because its state knows the end. One slope a for all noise levels (M13) and an offset for
each. A head that knows its training pictures and nothing else gets a slope near 0. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SMALLEST = 1e-4
_RIDGE_OFFSET = 2.0  # as if so many states said that there is no offset


@dataclass(frozen=True)
class Trust:
    """The fit.

    Args:
        slope: a in [0, 1].
        error: its standard error, before it was kept in [0, 1].
        offsets: (t, o) by rising noise level.
    """

    slope: float
    error: float
    offsets: tuple[tuple[float, float], ...]


def fit_trust(levels: np.ndarray, alpha: np.ndarray, r: np.ndarray, groups: np.ndarray, rate: float) -> Trust:
    """Fit slope and offsets.

    Args:
        levels: noise level of each state, (n,), of few different values.
        alpha: as the head read it, (n,).
        r: of the picture of each state, (n,) in [0, 1].
        groups: the picture of each state, (n,), whose states are not independent.
        rate: p, towards which alpha is shrunk.
    """
    known, place = np.unique(levels, return_inverse=True)
    logit = np.log(np.clip(alpha, SMALLEST, 1 - SMALLEST) / (1 - np.clip(alpha, SMALLEST, 1 - SMALLEST)))
    centre = np.log(rate / (1 - rate))
    x = np.zeros((len(r), 1 + len(known)))
    x[:, 0] = logit - centre
    x[np.arange(len(r)), 1 + place] = 1.0
    b, bread = _fit(x, r, centre, slope=None)
    scores = x * (r - _rates(x, b, centre))[:, None]
    sums = np.zeros((groups.max() + 1, len(b)))
    np.add.at(sums, groups, scores)
    inverse = np.linalg.inv(bread)
    error = float(np.sqrt(max((inverse @ (sums.T @ sums) @ inverse)[0, 0], 0.0)))
    slope = float(np.clip(b[0], 0.0, 1.0))
    if slope != b[0]:
        b, _ = _fit(x, r, centre, slope)  # the offsets that this slope needs
    # The offsets stand inside the brackets, beside alpha's logit.
    inside = b[1:] / max(slope, 0.1)
    return Trust(slope, error, tuple((float(t), float(np.clip(o, -5, 5))) for t, o in zip(known, inside, strict=True)))


def _fit(x: np.ndarray, r: np.ndarray, centre: float, slope: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Slope and offsets, and the matrix of second derivatives; a slope that is given stays."""
    levels = x.shape[1] - 1
    ridge = np.array([1e-3, *[_RIDGE_OFFSET] * levels])
    prior = np.array([1.0 if slope is None else slope, *[0.0] * levels])
    moves = np.array([slope is None, *[True] * levels])
    b, bread = prior.copy(), np.eye(len(prior))
    for _ in range(100):
        p = _rates(x, b, centre)
        bread = (x * (p * (1 - p) + 1e-9)[:, None]).T @ x + np.diag(ridge)
        gradient = x.T @ (r - p) - ridge * (b - prior)
        step = np.zeros(len(b))
        step[moves] = np.linalg.solve(bread[np.ix_(moves, moves)], gradient[moves])
        b = b + step * min(1.0, 1.0 / max(np.abs(step).max(), 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    return b, bread


def _rates(x: np.ndarray, b: np.ndarray, centre: float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(centre + x @ b, -40, 40)))
