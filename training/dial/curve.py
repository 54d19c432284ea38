"""The share of liked pictures as a curve over the weight, fitted to all pictures of a mode at once.

    logit R(w) = m(w) + b_0 + b_1 w + b_2 w^2 + b_3 w^3     cross entropy of r in [0, 1], with a ridge

In one pass m is 0. In two passes the odds law draws a mixture of the base model and of what the LoRA draws when it is
fully on, R(w) = p + (q - p) w (M11), so m is the logit of that and the rest is what the law misses.

The same prompts and noises are drawn at every weight, so the errors of R at two weights go together, and what counts,
how far R has moved, is known better than R itself. Its covariance is a sandwich over prompts, whose pictures are not
independent. numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

ENOUGH_PROMPTS = 12  # to take errors over prompts; below, over noises
_RIDGE = np.array([1e-6, 1e-4, 0.3, 1.0])
_RIDGE_MIXED = np.array([1e-6, 1.0, 2.0, 3.0])  # of the correction to a law that is right but for learned errors
_LEAST_RATE = 0.002
_GRID = 400


@dataclass(frozen=True)
class RateCurve:
    """A fitted curve.

    Args:
        coefficients: b_0 to b_3, for weights in units of `unit`.
        covariance: of them, (4, 4).
        low, high: the weights between which it rises, 0 among them; it is not to be used beyond.
        unit: the largest size of a weight that was drawn.
        mixed: (p, q) of the mixture in m; None for m = 0.
    """

    coefficients: np.ndarray
    covariance: np.ndarray
    low: float
    high: float
    unit: float
    mixed: tuple[float, float] | None = None

    def rate(self, weight: float | np.ndarray) -> np.ndarray:
        """R at weights of any shape."""
        w = np.asarray(weight, dtype=np.float64)
        return _sigmoid(_mixture(w, self.mixed) + _powers(w / self.unit) @ self.coefficients)

    def error(self, weight: float | np.ndarray) -> np.ndarray:
        """The standard error of R at weights of any shape."""
        powers, rate = _powers(np.asarray(weight) / self.unit), self.rate(weight)
        logit = np.sqrt(np.maximum(np.einsum("...i,ij,...j->...", powers, self.covariance, powers), 0))
        return rate * (1 - rate) * logit

    def weight(self, rate: float) -> float:
        """The weight at which R is `rate`, at most as far as the curve is to be used."""
        grid = np.linspace(self.low, self.high, _GRID)
        return float(np.interp(rate, np.maximum.accumulate(self.rate(grid)), grid))


def fit_curve(weights: np.ndarray, r: np.ndarray, groups: np.ndarray, is_mixture: bool = False) -> RateCurve:
    """Fit the curve.

    Args:
        weights: of each picture, (n,); some are 0.
        r: how far each is liked, (n,) in [0, 1].
        groups: the prompt of each picture, (n,).
        is_mixture: whether the weight mixes two distributions, as the odds law does in two passes.
    """
    unit = max(float(np.abs(weights).max()), 1e-6)
    x = _powers(weights / unit)
    mean = float(np.clip(r[weights == 0].mean(), 0.5 / len(r), 1 - 0.5 / len(r)))
    mixed, ridge = None, _RIDGE
    start = math.log(mean / (1 - mean))
    if is_mixture:
        full = r[weights > 0.9]
        mixed, ridge, start = (mean, float(full.mean()) if len(full) else 1.0), _RIDGE_MIXED, 0.0
    known = _mixture(weights, mixed)
    b = np.array([start, 0.0, 0.0, 0.0])
    bread = np.eye(4)
    for _ in range(100):
        p = _sigmoid(known + x @ b)
        bread = (x * (p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(bread, x.T @ (r - p) - ridge * b)
        b = b + step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    scores = x * (r - _sigmoid(known + x @ b))[:, None]
    names, place = np.unique(groups, return_inverse=True)
    if len(names) < ENOUGH_PROMPTS:
        sums = scores
    else:
        sums = np.zeros((len(names), 4))
        np.add.at(sums, place, scores)
    inverse = np.linalg.inv(bread)
    curve = RateCurve(b, inverse @ (sums.T @ sums) @ inverse, float(weights.min()), float(weights.max()), unit, mixed)
    low, high = _rising(curve)
    return replace(curve, low=low, high=high)


def _rising(curve: RateCurve) -> tuple[float, float]:
    """The widest stretch around 0 of the weights that were drawn on which the curve rises."""
    low, high = min(curve.low, 0.0), max(curve.high, 0.0)
    grid = np.concatenate([np.linspace(low, 0.0, _GRID), np.linspace(0.0, high, _GRID)[1:]])
    rises = np.diff(curve.rate(grid)) > 0
    first = last = _GRID - 1  # the place of 0
    while last < len(rises) and rises[last]:
        last += 1
    while first > 0 and rises[first - 1]:
        first -= 1
    return float(grid[first]), float(grid[last])


def _mixture(weights: np.ndarray, mixed: tuple[float, float] | None) -> np.ndarray:
    """m(w): the logit of p + (q - p) w, 0 where nothing is mixed."""
    if mixed is None:
        return np.zeros_like(weights, dtype=np.float64)
    rate = np.clip(mixed[0] + (mixed[1] - mixed[0]) * weights, _LEAST_RATE, 1 - _LEAST_RATE)
    return np.log(rate / (1 - rate))


def _powers(x: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(x), x, x**2, x**3], axis=-1)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -40, 40)))


def rate_between_prompts(r: np.ndarray, groups: np.ndarray) -> tuple[float, float, float]:
    """Of r (n,) by prompt (n,): the mean, its standard error, and the standard deviation between prompts without what
    chance adds."""
    names, place = np.unique(groups, return_inverse=True)
    count = np.bincount(place)
    means = np.bincount(place, r) / count
    mean = float(r.mean())
    if len(names) < 2:
        return mean, float(r.std() / len(r) ** 0.5), 0.0
    weight = count / count.sum()
    error = float(np.sqrt((weight**2 * (means - mean) ** 2).sum() * len(names) / (len(names) - 1)))
    repeated = count > 1
    if not repeated.any():
        return mean, error, 0.0
    # Within a prompt, the unbiased variance of r; between, the variance of the means less what that adds to them.
    squares = np.bincount(place, (r - means[place]) ** 2)[repeated] / (count[repeated] - 1)
    between = ((means[repeated] - mean) ** 2 * len(names) / (len(names) - 1) - squares / count[repeated]).mean()
    return mean, error, float(np.sqrt(min(max(between, 0.0), 0.25)))
