"""From a reward's scores of new pictures to r in [0, 1], on the scale of the base model's own pictures.

A run turns the scores of its pool into r (training/data/optimality.py). A calibration has to do the same with pictures
that guidance has drawn, whose mean is another: the scale is taken from the base model's pictures once, and kept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..settings.choices import Method

Liking = Callable[[np.ndarray], np.ndarray]


def liking_of(base_scores: np.ndarray, method: Method, at: float | None = None) -> Liking:
    """A function from scores (n,) to r (n,).

    Args:
        base_scores: of the base model's pictures, (n,), NaN where there is none.
        method: the run's `optimality`. "rank" and "group" compare with the base model's pictures here.
        at: the score from which on a picture is liked, for "threshold".
    """
    known = base_scores[np.isfinite(base_scores)]
    if method in ("raw", "likes"):
        return lambda scores: np.clip(scores, 0.0, 1.0)
    if method == "threshold" and at is not None:
        return lambda scores: np.where(np.isfinite(scores), (scores >= at).astype(float), np.nan)
    mean, spread = float(known.mean()), max(float(known.std()), 1e-12)
    if method == "sigmoid":
        return lambda scores: 1 / (1 + np.exp(-np.clip((scores - mean) / spread, -40, 40)))
    if method == "group":
        return lambda scores: 0.5 + np.clip((scores - mean) / spread, -5, 5) / 10
    ordered = np.sort(known)

    def rank(scores: np.ndarray) -> np.ndarray:
        below = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
        return np.where(np.isfinite(scores), below / (2 * len(ordered)), np.nan)

    return rank
