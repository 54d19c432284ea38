"""The share of liked pictures as a curve over the weight, fitted to all pictures of a mode at once.

    logit R(w) = b_0 + b_1 w + b_2 w^2 + b_3 w^3            cross entropy of r in [0, 1], small ridge on b_2 and b_3

The same prompts and noises are drawn at every weight, so the errors of R at two weights go together, and what counts,
how far R has moved, is known better than R itself. Its covariance is a sandwich over prompts, whose pictures are not
independent. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ENOUGH_PROMPTS = 12  # to take errors over prompts; below, over noises
_RIDGE = np.array([1e-6, 1e-4, 1.0, 3.0])
_GRID = 400


@dataclass(frozen=True)
class RateCurve:
    """A fitted curve.

    Args:
        coefficients: b_0 to b_3, for weights in units of `unit`.
        covariance: of them, (4, 4).
        low, high: the weights between which it rises, 0 among them; it is not to be used beyond.
        unit: the largest size of a weight that was drawn.
    """

    coefficients: np.ndarray
    covariance: np.ndarray
    low: float
    high: float
    unit: float

    def rate(self, weight: float | np.ndarray) -> np.ndarray:
        """R at weights of any shape."""
        return _sigmoid(_powers(np.asarray(weight) / self.unit) @ self.coefficients)

    def error(self, weight: float | np.ndarray) -> np.ndarray:
        """The standard error of R at weights of any shape."""
        powers, rate = _powers(np.asarray(weight) / self.unit), self.rate(weight)
        logit = np.sqrt(np.maximum(np.einsum("...i,ij,...j->...", powers, self.covariance, powers), 0))
        return rate * (1 - rate) * logit

    def weight(self, rate: float) -> float:
        """The weight at which R is `rate`, at most as far as the curve is to be used."""
        grid = np.linspace(self.low, self.high, _GRID)
        return float(np.interp(rate, np.maximum.accumulate(self.rate(grid)), grid))


def fit_curve(weights: np.ndarray, r: np.ndarray, groups: np.ndarray) -> RateCurve:
    """Fit the curve.

    Args:
        weights: of each picture, (n,); some are 0.
        r: how far each is liked, (n,) in [0, 1].
        groups: the prompt of each picture, (n,).
    """
    unit = max(float(np.abs(weights).max()), 1e-6)
    x = _powers(weights / unit)
    mean = np.clip(r[weights == 0].mean(), 0.5 / len(r), 1 - 0.5 / len(r))
    b = np.array([np.log(mean / (1 - mean)), 0.0, 0.0, 0.0])
    bread = np.eye(4)
    for _ in range(100):
        p = _sigmoid(x @ b)
        bread = (x * (p * (1 - p))[:, None]).T @ x + np.diag(_RIDGE)
        step = np.linalg.solve(bread, x.T @ (r - p) - _RIDGE * b)
        b = b + step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    scores = x * (r - _sigmoid(x @ b))[:, None]
    names, place = np.unique(groups, return_inverse=True)
    if len(names) < ENOUGH_PROMPTS:
        sums = scores
    else:
        sums = np.zeros((len(names), 4))
        np.add.at(sums, place, scores)
    inverse = np.linalg.inv(bread)
    low, high = _rising(b, float(weights.min()) / unit, float(weights.max()) / unit)
    return RateCurve(b, inverse @ (sums.T @ sums) @ inverse, low * unit, high * unit, unit)


def _rising(b: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The widest stretch around 0, inside [low, high], on which the cubic rises."""
    grid = np.concatenate([np.linspace(low, 0.0, _GRID), np.linspace(0.0, high, _GRID)[1:]])
    rises = np.diff(_powers(grid) @ b) > 0
    first = last = _GRID - 1  # the place of 0
    while last < len(rises) and rises[last]:
        last += 1
    while first > 0 and rises[first - 1]:
        first -= 1
    return float(grid[first]), float(grid[last])


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
