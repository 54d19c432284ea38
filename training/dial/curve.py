"""The share of liked pictures as a curve over the weight, fitted to all pictures of a mode at once.

    logit R(w) = m(w) + b_0 + b_1 w + f(w)

In one pass m is 0. In two passes the odds law draws a mixture of the base model and of what the LoRA draws when it is
fully on, R(w) = p + (q - p) w (M11), so m is the logit of that and the rest is what the law misses.

f is a smoothing spline: the integral of a Brownian motion that starts at weight 0 to either side, as some LoRAs do
nothing up to half their weight and others all they can within a tenth of it. How far it may bend is what makes the
pictures most likely (its evidence, by Laplace's approximation), so a straight line stays one.

The same prompts and noises are drawn at every weight, so the errors of R at two weights go together, and what counts,
how far R has moved, is known better than R itself. Its covariance is a sandwich over prompts, whose pictures are not
independent, with what the smoothing may have taken from f. Not every weight is tried on all prompts and noises, and
what that adds is taken out (luck.py). numpy only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from .logistic import fit_logistic, sigmoid
from .luck import even_out

ENOUGH_PROMPTS = 12  # to take errors over prompts; below, over noises
BENDS = tuple(10.0**power for power in np.arange(-2.0, 3.1, 0.5))  # the variances of f that are tried
_RIDGE = (1e-6, 1e-2)  # of b_0 and b_1
_RIDGE_MIXED = (1e-6, 1.0)  # the same where the law is right but for learned errors
_LEAST_RATE = 0.002
_GRID = 400


@dataclass(frozen=True)
class RateCurve:
    """A fitted curve.

    Args:
        coefficients: b_0, b_1 and those of f, (k,), for weights in units of `unit`.
        covariance: of them, (k, k).
        knots: where f may bend, (k - 2,), in units of `unit`.
        low, high: the weights between which it rises, 0 among them; it is not to be used beyond.
        unit: the largest size of a weight that was drawn.
        mixed: (p, q) of the mixture in m; None for m = 0.
    """

    coefficients: np.ndarray
    covariance: np.ndarray
    knots: np.ndarray
    low: float
    high: float
    unit: float
    mixed: tuple[float, float] | None = None

    def rate(self, weight: float | np.ndarray) -> np.ndarray:
        """R at weights of any shape."""
        w = np.asarray(weight, dtype=np.float64)
        return sigmoid(_mixture(w, self.mixed) + _features(w / self.unit, self.knots) @ self.coefficients)

    def error(self, weight: float | np.ndarray) -> np.ndarray:
        """The standard error of R at weights of any shape."""
        x, rate = _features(np.asarray(weight, dtype=np.float64) / self.unit, self.knots), self.rate(weight)
        logit = np.sqrt(np.maximum(np.einsum("...i,ij,...j->...", x, self.covariance, x), 0))
        return rate * (1 - rate) * logit

    def draws(self, weight: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        """R at weights, (n,), as it may be by what is not known of it: (count, n), each row one curve whose R at weight
        0 is this one's. So rows tell how far R may have moved, which two ways on one base model do not share."""
        drawn = random.multivariate_normal(self.coefficients, self.covariance, count, method="eigh")
        at = np.concatenate([[0.0], np.asarray(weight, dtype=np.float64)])
        rates = sigmoid(_mixture(at, self.mixed) + drawn @ _features(at / self.unit, self.knots).T)
        return rates[:, 1:] - rates[:, :1] + float(self.rate(0.0))

    def weight(self, rate: float) -> float:
        """The weight at which R is `rate`, at most as far as the curve is to be used."""
        grid = np.linspace(self.low, self.high, _GRID)
        return float(np.interp(rate, np.maximum.accumulate(self.rate(grid)), grid))


def fit_curve(
    weights: np.ndarray,
    r: np.ndarray,
    groups: np.ndarray,
    rows: np.ndarray | None = None,
    is_mixture: bool = False,
) -> RateCurve:
    """Fit the curve.

    Args:
        weights: of each picture, (n,); some are 0.
        r: how far each is liked, (n,) in [0, 1].
        groups: the prompt of each picture, (n,).
        rows: where not every weight was tried on all of them, the prompt and noise of each picture, (n,), by its place
            among those of weight 0.
        is_mixture: whether the weight mixes two distributions, as the odds law does in two passes.
    """
    evened = None if rows is None or not (weights != 0).any() else even_out(weights, r, groups, rows)
    r = r if evened is None else evened.r
    unit = max(float(np.abs(weights).max()), 1e-6)
    tried, which, counts = np.unique(weights, return_inverse=True, return_counts=True)
    knots = tried[tried != 0] / unit
    x = _features(tried / unit, knots)  # pictures of one weight are alike
    mean = float(np.clip(r[weights == 0].mean(), 0.5 / len(r), 1 - 0.5 / len(r)))
    mixed, straight, start = None, _RIDGE, math.log(mean / (1 - mean))
    if is_mixture:
        full = r[weights > 0.9]
        mixed, straight, start = (mean, float(full.mean()) if len(full) else 1.0), _RIDGE_MIXED, 0.0
    law, liked = _mixture(tried, mixed), np.bincount(which, r)
    ridges = [np.array([*straight, *[1 / bend] * len(knots)]) for bend in BENDS]
    fits = [(*_fit(x, counts, liked, law, ridge, start), ridge) for ridge in ridges]
    b, bread, _, ridge = max(fits, key=lambda fit: fit[2])
    scores = x[which] * (r - sigmoid(law + x @ b)[which])[:, None]
    names, place = np.unique(groups, return_inverse=True)
    if len(names) < ENOUGH_PROMPTS:
        names, place = np.unique(np.arange(len(r)) if rows is None else rows, return_inverse=True)
    sums = np.zeros((len(names), len(b)))
    np.add.at(sums, place, scores)
    if evened is not None:
        for weight, of_rows in zip(evened.weights, evened.of_rows, strict=True):
            at = tried == weight
            np.add.at(sums, place[weights == 0], np.outer(of_rows / len(of_rows), counts[at] * x[at][0]))
    # What chance does to the pictures, and what the ridge takes from an f that is as large as it expects.
    covariance = np.linalg.solve(bread, np.linalg.solve(bread, sums.T @ sums + np.diag(ridge)).T)
    curve = RateCurve(b, covariance, knots, float(weights.min()), float(weights.max()), unit, mixed)
    return replace(curve, low=_end(curve, min(curve.low, 0.0)), high=_end(curve, max(curve.high, 0.0)))


def _fit(
    x: np.ndarray, counts: np.ndarray, liked: np.ndarray, law: np.ndarray, ridge: np.ndarray, start: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """(coefficients, their curvature, the evidence of the ridge), from how many pictures of each weight are liked."""
    b, bread = fit_logistic(x, liked, ridge, counts=counts, law=law, start=start)
    logit = law + x @ b
    likelihood = (liked * logit - counts * np.logaddexp(0, logit)).sum() - (ridge * b**2).sum() / 2
    return b, bread, float(likelihood + np.log(ridge).sum() / 2 - np.linalg.slogdet(bread)[1] / 2)


def _end(curve: RateCurve, last: float) -> float:
    """Where the curve stops rising between 0 and `last`, or falling on the side below 0; a dip within half its standard
    error is not taken for one."""
    grid = np.linspace(0.0, last, _GRID)
    rises = curve.rate(grid) * (1 if last > 0 else -1)
    best = np.maximum.accumulate(rises)
    fallen = best - rises > 0.5 * curve.error(grid)
    until = int(fallen.argmax()) if fallen.any() else len(grid)
    return float(grid[rises[:until].argmax()])


def _mixture(weights: np.ndarray, mixed: tuple[float, float] | None) -> np.ndarray:
    """m(w): the logit of p + (q - p) w, 0 where nothing is mixed."""
    if mixed is None:
        return np.zeros_like(weights, dtype=np.float64)
    rate = np.clip(mixed[0] + (mixed[1] - mixed[0]) * weights, _LEAST_RATE, 1 - _LEAST_RATE)
    return np.log(rate / (1 - rate))


def _features(x: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """(1, x, f's) with f's coefficients independent and of variance 1: the kernel of an integrated Brownian motion from
    0 to either side, k(x, y) = a^2 (3 b - a) / 6 with a the smaller and b the larger size where both have one sign."""
    spline = _kernel(x, knots) @ np.linalg.inv(np.linalg.cholesky(_kernel(knots, knots) + 1e-9 * np.eye(len(knots)))).T
    return np.concatenate([np.ones_like(x)[..., None], x[..., None], spline], axis=-1)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    small = np.minimum(np.abs(x[..., None]), np.abs(y))
    large = np.maximum(np.abs(x[..., None]), np.abs(y))
    return np.where(x[..., None] * y > 0, small**2 * (3 * large - small) / 6, 0.0)


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
