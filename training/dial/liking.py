"""A reward's scores of new pictures, normalised on the scale of the base model's own pictures.

A run turns the scores of its pool into r (training/data/optimality.py). A calibration has to do the same with pictures
that guidance has drawn, whose mean is another: the scale is taken from the base model's pictures once, and kept. Where
a run compares the pictures of one prompt, a picture is compared here with the mean of its prompt's base pictures, on
the spread of all of them about such means. Then `unit` there makes r of it.
"""

from __future__ import annotations

import numpy as np

from ..settings.choices import Method


class BaseScale:
    """The scale of one reward.

    Args:
        scores: of the base model's pictures, (n,), NaN where there is none, but not everywhere.
        prompts: the prompt of each, (n,).
        method: the run's `optimality`.
        at: the score from which on a picture is liked, for "threshold".
    """

    def __init__(self, scores: np.ndarray, prompts: np.ndarray, method: Method, at: float | None = None) -> None:
        known = np.isfinite(scores)
        self._method, self._at = method, at
        self._mean, self._spread = float(scores[known].mean()), max(float(scores[known].std()), 1e-12)
        self._of_prompt = {
            prompt: float(scores[known & (prompts == prompt)].mean()) for prompt in np.unique(prompts[known]).tolist()
        }
        self._residuals = np.sort(self._residual(scores[known], prompts[known]))

    def __call__(self, scores: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        """Normalised scores of pictures with these scores and prompts, (n,); NaN stays NaN."""
        if self._method in ("raw", "likes", "exponential"):
            return scores
        if self._method == "threshold":
            assert self._at is not None
            return np.where(np.isfinite(scores), (scores >= self._at).astype(float), np.nan)
        if self._method == "sigmoid":
            return np.clip((scores - self._mean) / self._spread, -40, 40)
        residual = self._residual(scores, prompts)
        if self._method in ("group", "top"):
            return residual / self._spread
        below = np.searchsorted(self._residuals, residual, "left") + np.searchsorted(self._residuals, residual, "right")
        return np.where(np.isfinite(residual), below / (2 * len(self._residuals)), np.nan)

    def _residual(self, scores: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        return scores - np.array([self._of_prompt.get(prompt, self._mean) for prompt in prompts.tolist()])
