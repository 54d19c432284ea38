"""From a reward's scores of new pictures to r in [0, 1], on the scale of the base model's own pictures.

A run turns the scores of its pool into r (training/data/optimality.py). A calibration has to do the same with pictures
that guidance has drawn, whose mean is another: the scale is taken from the base model's pictures once, and kept. Where
a run compares the pictures of one prompt, a picture is compared here with the mean of its prompt's base pictures, on
the spread of all of them about such means.
"""

from __future__ import annotations

import numpy as np

from ..data.optimality import CLIP, TOP_SHARE
from ..settings.choices import Method


class Liking:
    """Scores to r.

    Args:
        scores: of the base model's pictures, (n,), NaN where there is none.
        prompts: the prompt of each, (n,).
        method: the run's `optimality`.
        at: for "threshold", the score from which on a picture is liked; for "top", the share that is.
    """

    def __init__(self, scores: np.ndarray, prompts: np.ndarray, method: Method, at: float | None = None) -> None:
        known = np.isfinite(scores)
        self._method, self._at = method, at
        self._mean = float(scores[known].mean()) if known.any() else 0.0
        self._spread = max(float(scores[known].std()), 1e-12) if known.any() else 1.0
        self._of_prompt = {
            prompt: float(scores[known & (prompts == prompt)].mean()) for prompt in np.unique(prompts[known]).tolist()
        }
        self._residuals = np.sort(self._residual(scores[known], prompts[known]))

    def __call__(self, scores: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        """r of scores (n,) with the prompt of each (n,); NaN stays NaN."""
        if self._method in ("raw", "likes"):
            return np.clip(scores, 0.0, 1.0)
        if self._method == "threshold":
            return np.where(np.isfinite(scores), (scores >= (self._at or 0.0)).astype(float), np.nan)
        if self._method == "sigmoid":
            return 1 / (1 + np.exp(-np.clip((scores - self._mean) / self._spread, -40, 40)))
        residual = self._residual(scores, prompts)
        if self._method == "group":
            return 0.5 + np.clip(residual / self._spread, -CLIP, CLIP) / (2 * CLIP)
        below = np.searchsorted(self._residuals, residual, "left") + np.searchsorted(self._residuals, residual, "right")
        rank = np.where(np.isfinite(residual), below / (2 * max(len(self._residuals), 1)), np.nan)
        if self._method == "rank":
            return rank
        share = TOP_SHARE if self._at is None else self._at
        return np.where(np.isfinite(rank), (rank >= 1 - share).astype(float), np.nan)

    def _residual(self, scores: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        return scores - np.array([self._of_prompt.get(prompt, self._mean) for prompt in prompts.tolist()])
