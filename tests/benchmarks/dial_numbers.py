"""Promise against measurement, and two ways of drawing at an equal rate: the arithmetic of tests/benchmarks/dial.py.

A point is what was measured of n pictures, picture i drawn for prompt i mod P, n a multiple of P. Pictures of one
prompt are not independent, so every error here is over prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

MEASURES = ("quality", "right", "diversity")
REPLICATES = 500  # of the bootstrap over prompts
_QUANTILES = (np.arange(64) + 0.5) / 64

ByPrompt = dict[str, np.ndarray]


def by_prompt(point: Mapping[str, Any], prompts: int) -> ByPrompt:
    """The means of a point's measures for each prompt, (P,) each."""
    return {name: np.asarray(point[name], float).reshape(-1, prompts).mean(0) for name in ("liked", *MEASURES)}


def promised_by_prompt(liked: np.ndarray, pictures: int, tilt: float) -> np.ndarray:
    """The odds law's promise for each prompt, (P,): the mean of p e^L / (1 - p + p e^L) over what is known of its p.

    What is known of p is a Beta distribution: one fitted to all prompts by the moments of their rates, and the prompt's
    own pictures. Without it, prompts whose few pictures hold none that is liked would be promised nothing.

    Args:
        liked: the share of each prompt's pictures that is liked without guidance, (P,).
        pictures: how many pictures each prompt has.
        tilt: L.
    """
    least = 0.5 / liked.size / pictures
    mean = float(np.clip(liked.mean(), least, 1 - least))
    excess = liked.var(ddof=1) * pictures / (mean * (1 - mean)) - 1
    alike = float(np.clip(excess / (pictures - 1), 1e-4, 0.98))
    weight = 1 / alike - 1
    a, b = mean * weight + liked * pictures, (1 - mean) * weight + (1 - liked) * pictures
    p = stats.beta.ppf(_QUANTILES, a[:, None], b[:, None])
    odds = p * np.exp(tilt)
    return (odds / (1 - p + odds)).mean(1)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of values by prompt, (P,), and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def replicates(prompts: int, seed: int = 0) -> np.ndarray:
    """Weights of the prompts, (1 + REPLICATES, P): all alike first, then as drawn with replacement."""
    drawn = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), REPLICATES) / prompts
    return np.concatenate([np.full((1, prompts), 1 / prompts), drawn])


def beside_rival(ours: ByPrompt, rivals: Sequence[ByPrompt], weights: np.ndarray) -> dict[str, np.ndarray] | None:
    """Our measures less the rival's at our rate, by measure, (1 + REPLICATES,); None if the rival does not reach it.

    Args:
        ours: one point.
        rivals: the rival's points in the order of its settings. Between two it is taken to be straight.
        weights: as `replicates` gives them.
    """
    rate, reached = weights @ ours["liked"], np.stack([weights @ point["liked"] for point in rivals], 1)
    values = {name: np.stack([weights @ point[name] for point in rivals], 1) for name in MEASURES}
    matched = {name: np.full(len(weights), np.nan) for name in MEASURES}
    for low, high in itertools.pairwise(range(len(rivals))):
        span = reached[:, high] - reached[:, low]
        part = np.divide(rate - reached[:, low], span, out=np.full(len(rate), np.nan), where=span != 0)
        here = (part >= 0) & (part <= 1) & np.isnan(matched["quality"])
        for name in MEASURES:
            between = values[name][:, low] + part * (values[name][:, high] - values[name][:, low])
            matched[name][here] = between[here]
    if np.isnan(matched["quality"][0]):
        return None
    return {name: weights @ ours[name] - matched[name] for name in MEASURES}
