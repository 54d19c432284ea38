"""From a reward's scores of new pictures to normalised ones, on the scale of the base model's own pictures.

A run turns the scores of its pool into r (training/data/optimality.py). A calibration has to do the same with pictures
that guidance has drawn, whose mean is another: the scale is taken from the base model's pictures once, and kept. Then
`unit` there makes r of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..settings.choices import Method

Liking = Callable[[np.ndarray], np.ndarray]


def liking_of(base_scores: np.ndarray, method: Method, at: float | None = None) -> Liking:
    """A function from scores (n,) to normalised scores (n,), which keeps NaN.

    Args:
        base_scores: of the base model's pictures, (n,), NaN where there is none, but not everywhere.
        method: the run's `optimality`. "rank" and "group" compare with the base model's pictures here.
        at: the score from which on a picture is liked; "threshold" needs it.
    """
    if method in ("raw", "likes"):
        return lambda scores: scores
    if method == "threshold":
        assert at is not None
        return lambda scores: np.where(np.isfinite(scores), (scores >= at).astype(float), np.nan)
    known = np.sort(base_scores[np.isfinite(base_scores)])
    if method in ("sigmoid", "group"):
        mean, spread = float(known.mean()), max(float(known.std()), 1e-12)
        return lambda scores: np.clip((scores - mean) / spread, -40, 40)

    def rank(scores: np.ndarray) -> np.ndarray:
        below = np.searchsorted(known, scores, "left") + np.searchsorted(known, scores, "right")
        return np.where(np.isfinite(scores), below / (2 * len(known)), np.nan)

    return rank
