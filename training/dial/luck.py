"""Takes out of a calibration's judgements what the choice of its pictures put in.

Each weight is tried on a part of the rows, a row being one prompt with one noise, and some rows are liked more easily
than others. All rows were drawn at weight 0, so it is known which. With m(w, j) a rough model of how far row j is liked
at weight w, the picture of row i at w is worth

    r - m(w, i) + mean over all rows j of m(w, j)

Its mean over the rows that were drawn is that of all rows whatever the model, and its noise is less, the better the
model ("regression adjustment", Robins, Rotnitzky, Zhao 1994). Here m is a logistic regression on the weight, on whether
the row was liked at weight 0, and on the rate of its prompt there. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .logistic import fit_logistic, sigmoid

_RIDGE = np.array([1e-4, 1e-2, 0.3, 1.0, 0.3, 0.5, 0.3, 0.5])
_PRIOR = 4.0  # pictures at the mean rate that a prompt's own are put together with


@dataclass(frozen=True)
class Evened:
    """Judgements as if every weight had been tried on all rows.

    Args:
        r: of each picture, (n,); no longer inside [0, 1].
        weights: those that were tried, (m,), without 0.
        of_rows: m(w, j) less its mean over the rows, (m, rows): what a curve through `r` shares with the rows' chance.
    """

    r: np.ndarray
    weights: np.ndarray
    of_rows: np.ndarray


def even_out(weights: np.ndarray, r: np.ndarray, groups: np.ndarray, rows: np.ndarray) -> Evened:
    """Even out the rows.

    Args:
        weights: of each picture, (n,).
        r: how far each is liked, (n,) in [0, 1].
        groups: the prompt of each, (n,).
        rows: the row of each, (n,), by its place among the pictures of weight 0.
    """
    base = weights == 0
    liked, prompts = r[base], groups[base]
    place = np.unique(prompts, return_inverse=True)[1]
    counts = np.bincount(place)
    rate = ((np.bincount(place, liked) + _PRIOR * liked.mean()) / (counts + _PRIOR))[place]
    rate = np.clip(rate, 1e-3, 1 - 1e-3)
    easy = np.stack([np.log(rate / (1 - rate)), liked], axis=1)
    easy -= easy.mean(0)
    unit = max(float(np.abs(weights).max()), 1e-6)

    def features(weight: np.ndarray, row: np.ndarray) -> np.ndarray:
        w = weight / unit
        prompt, own = easy[row].T
        return np.stack([np.ones_like(w), w, w**2, w**3, prompt, prompt * w, own, own * np.abs(w)], axis=1)

    drawn, all_rows, evened = ~base, np.arange(len(liked)), r.copy()
    b, _ = fit_logistic(features(weights[drawn], rows[drawn]), r[drawn], _RIDGE)
    tried = np.unique(weights[drawn])
    models = np.stack([sigmoid(features(np.full(len(liked), weight), all_rows) @ b) for weight in tried])
    for weight, model in zip(tried, models, strict=True):
        at = weights == weight
        evened[at] += model.mean() - model[rows[at]]
    return Evened(evened, tried, models - models.mean(1, keepdims=True))
