"""A logistic regression with a ridge, by Newton's method: of a calibration's curve and of what evens its rows out.

    logit p = law + x b,   b minimises   cross entropy of p and liked / counts  +  sum_j ridge_j b_j^2 / 2

numpy only.
"""

from __future__ import annotations

import numpy as np


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x), of any shape, finite for any x."""
    return 1 / (1 + np.exp(-np.clip(x, -40, 40)))


def fit_logistic(
    x: np.ndarray,
    liked: np.ndarray,
    ridge: np.ndarray,
    *,
    counts: np.ndarray | float = 1.0,
    law: np.ndarray | float = 0.0,
    start: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """The coefficients b, (k,), and the matrix of second derivatives there, (k, k).

    Args:
        x: the features of each row, (n, k).
        liked: the sum of what was judged in each row, (n,).
        ridge: how strongly each coefficient is held at 0, (k,).
        counts: how many judgements each row has, (n,).
        law: what is known of the logit, (n,).
        start: the first coefficient to begin with.
    """
    b, bread = np.zeros(x.shape[1]), np.eye(x.shape[1])
    b[0] = start
    for _ in range(100):
        p = sigmoid(law + x @ b)
        bread = (x * (counts * p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(bread, x.T @ (liked - counts * p) - ridge * b)
        b = b + step * min(1.0, 2.0 / max(np.abs(step).max(), 1e-12))
        if np.abs(step).max() < 1e-8:
            break
    return b, bread
