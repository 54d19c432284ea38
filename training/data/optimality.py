"""From scores to r in [0, 1], the probability that a picture is a good one (docs/theory.md, M1).

    raw         r = the score itself, which is in [0, 1] already (the card of a built-in reward maps its score there)
    likes       r = the score, 0 or 1
    threshold   r = 1 if the score is at least a given number, else 0
    sigmoid     r = 1 / (1 + exp(-z)), where z is the score in standard deviations from the mean of all
    rank        r = the share of the group (or of all) that has a lower score; ties count half
    group       r = 1/2 + clip(A, -5, 5) / 10, A = (score - mean of its group) / (standard deviation of all + 1e-4):
                DiffusionNFT's own (arXiv:2509.16117). r stays near 1/2: 0.1 for each standard deviation, which at the
                tilt 2 / beta is a tilt of 0.2 / beta for each standard deviation
    top         r = 1 for the best share of the group (or of all), by default 30 %, else 0. A picture whose place in the
                order lies across the border has the part of it that is inside, and equal scores share what they get, so
                that r has the same mean in every group
    exponential r = e^(kappa (score - 1)) with the scores of "raw", kappa 4 by default: v_plus then draws the
                exponential tilt p_old e^(kappa score), and beside an adapter with "raw" every smaller one (M15). Of
                several rewards the mean, or the product, is the score

How far a positive adapter can go is decided here: v_plus draws pictures in proportion to r, and r = 0 for the worse
ones takes it further than an r that only falls slowly. docs/measured/optimality.md has the numbers.

Several rewards are normalised one by one, so that the unit of one cannot drown the others. Then either the weighted
mean of the normalised scores becomes r, or each becomes an r of its own and r is their product: the probability that a
picture is good by all of them (docs/theory.md, M14). DiffusionNFT's authors sum the raw scores first, and normalise the
sum (`sum_first`).
numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from nft_pipeline.laws import EXPONENT

from ..settings.choices import Method, Mix

BY_CARD = ("raw", "exponential")  # which begin with the r that a reward's own card makes of its score
GROUPED = ("group", "rank", "top")
CENTRED = ("group", "rank", "sigmoid")  # r is about 1/2 in the mean, whatever the scores
DEFAULT_AT = {"top": 0.3, "exponential": EXPONENT}  # what `at` is where it is left out
LEAST = 4  # pictures of one prompt that are compared with each other
CLIP = 5.0
MISSING_LIMIT = 0.1


class OptimalityError(ValueError):
    """Scores that cannot be turned into optimality."""


@dataclass(frozen=True)
class Optimality:
    """Scores turned into optimality.

    Args:
        r: (N,) in [0, 1]; NaN where a score was missing.
        kept: (N,) bool, the samples with all their scores.
        mean, spread: of every reward over the kept samples.
        flat_groups: how many of the `groups` have the same score for all their samples, so that nothing is learned from
            them. Counted for the methods that compare within a group, `GROUPED`; the others learn from every sample.
    """

    r: np.ndarray
    kept: np.ndarray
    mean: dict[str, float]
    spread: dict[str, float]
    flat_groups: int
    groups: int

    @property
    def dropped(self) -> int:
        """How many pictures are left out."""
        return int((~self.kept).sum())

    def describe(self) -> str:
        """One line for the run's log."""
        parts = [f"{name} {self.mean[name]:.4g} ± {self.spread[name]:.2g}" for name in self.mean]
        if self.dropped:
            parts.append(f"{self.dropped} of {len(self.r)} dropped for missing scores")
        if self.flat_groups:
            parts.append(f"{self.flat_groups} of {self.groups} groups all alike, nothing to learn there")
        return "; ".join(parts)


def optimality(
    scores: Mapping[str, np.ndarray],
    method: Method,
    *,
    weights: Mapping[str, float] | None = None,
    groups: np.ndarray | None = None,
    at: float | None = None,
    mix: Mix = "mean",
    sum_first: bool = False,
) -> Optimality:
    """r from one or several rewards' scores.

    Args:
        scores: the scores per reward, (N,) each; NaN or infinite means that a score is missing.
        weights: the weight per reward, above 0; by default all are equal.
        groups: the group of each sample, (N,), where a group is the pictures of one prompt; None is one group of all.
        at: for "threshold", the score from which on a picture is liked; for "top", the share that is liked, inside
            (0, 1); for "exponential", kappa. None is the method's `DEFAULT_AT`.
        mix: "mean", or "product", which asks for all rewards at once and does not look at weights.
        sum_first: whether the raw scores times their weights are summed, and the sum is normalised as one reward.

    Raises:
        OptimalityError: no samples, more than 10 % of them without a score, or scores outside what the method takes.
    """
    names, at = list(scores), at_of(method, at)
    table = np.stack([np.asarray(scores[name], dtype=np.float64) for name in names])
    n = table.shape[1]
    group = np.zeros(n, dtype=np.int64) if groups is None else np.asarray(groups)
    kept: np.ndarray = np.asarray(np.isfinite(table).all(axis=0))
    if n == 0 or (~kept).mean() > MISSING_LIMIT:
        worst = {name: int((~np.isfinite(row)).sum()) for name, row in zip(names, table, strict=True)}
        said = ", ".join(f"{name!r} {count}" for name, count in worst.items())
        raise OptimalityError(
            f"{int((~kept).sum())} of {n} samples have no score (missing, NaN or infinite: {said}), expected at most "
            f"{MISSING_LIMIT:.0%}. Mend the reward; the checkpoint is kept, and the same command goes on from it"
        )
    weight = np.array([1.0 if weights is None else weights[name] for name in names])
    inside, members = table[:, kept], group[kept]
    flat = _flat_groups(inside, members) if method in GROUPED else 0
    r = np.full(n, np.nan)
    if sum_first:
        mixed = [_one(weight @ inside, members, method, " + ".join(names), at)]
    elif mix == "product":
        mixed = [_one(row, members, method, name, at) for name, row in zip(names, inside, strict=True)]
    else:
        parts = [_one(row, members, method, name, at) for name, row in zip(names, inside, strict=True)]
        mixed = [np.average(parts, axis=0, weights=weight)]
    if method == "top":
        assert at is not None
        r[kept] = np.prod([_top_of_groups(part, members, at) for part in mixed], axis=0)
    else:
        r[kept] = of_all(np.prod([unit(part, method) for part in mixed], axis=0), method, at)
    return Optimality(
        r,
        kept,
        {name: float(row.mean()) for name, row in zip(names, inside, strict=True)},
        {name: float(row.std()) for name, row in zip(names, inside, strict=True)},
        flat,
        len(np.unique(members)),
    )


def _one(scores: np.ndarray, group: np.ndarray, method: Method, name: str, at: float | None) -> np.ndarray:
    """One reward, normalised."""
    if method in ("group", "top"):
        _, index = np.unique(group, return_inverse=True)
        means = np.bincount(index, scores) / np.bincount(index)
        return (scores - means[index]) / (scores.std() + 1e-4)
    if method == "sigmoid":
        return (scores - scores.mean()) / max(float(scores.std()), 1e-12)
    if method == "rank":
        shares = np.empty_like(scores)
        for label in np.unique(group):
            inside = group == label
            shares[inside] = (rankdata(scores[inside]) - 0.5) / inside.sum()
        return shares
    if method == "threshold":
        if at is None:
            raise OptimalityError(
                "optimality 'threshold' needs the score from which on a picture is liked (optimality_at)"
            )
        return (scores >= at).astype(np.float64)
    wrong = scores[(scores != 0) & (scores != 1)] if method == "likes" else scores[(scores < 0) | (scores > 1)]
    if len(wrong):
        expected = "0 or 1" if method == "likes" else "scores in [0, 1]"
        raise OptimalityError(
            f"reward {name!r} gave {wrong[0]:.4g} (all: {scores.min():.4g} to {scores.max():.4g}) and optimality is "
            f"{method!r}, which expects {expected}. Set optimality: rank or sigmoid for scores of any unit"
        )
    return scores


def at_of(method: Method, at: float | None) -> float | None:
    """`at` of a method, or its default where it is left out; None for methods without one."""
    return DEFAULT_AT.get(method) if at is None else at


def of_all(r: np.ndarray, method: Method, at: float | None) -> np.ndarray:
    """What is made, at last, of the r of all rewards together, (N,); NaN stays NaN.

    Args:
        r: their mean or their product, in [0, 1].
        method: "exponential" takes e^(kappa (r - 1)); all others leave r.
        at: as `at_of` gives it, kappa.
    """
    if method != "exponential":
        return r
    assert at is not None
    return np.exp(at * (r - 1))


def unit(mixed: np.ndarray, method: Method) -> np.ndarray:
    """Normalised scores, or the weighted mean of several, as r in [0, 1].

    Args:
        mixed: (N,); NaN stays NaN.
        method: by which they were normalised; not "top", which compares within groups.
    """
    if method == "group":
        return 0.5 + np.clip(mixed, -CLIP, CLIP) / (2 * CLIP)
    if method == "sigmoid":
        return 1 / (1 + np.exp(-mixed))
    return np.clip(mixed, 0.0, 1.0)


def _top_of_groups(mixed: np.ndarray, group: np.ndarray, share: float) -> np.ndarray:
    """r of normalised scores by the best share of each group."""
    r = np.empty_like(mixed)
    for label in np.unique(group):
        r[group == label] = _top(mixed[group == label], share)
    return r


def _top(scores: np.ndarray, share: float) -> np.ndarray:
    """The part of each score's place in the order, an interval of [0, 1], that is above 1 - share."""
    low = (rankdata(scores, "min") - 1) / len(scores)
    high = rankdata(scores, "max") / len(scores)
    return np.clip(high - np.maximum(low, 1 - share), 0, None) / (high - low)


def by_prompt(prompt: np.ndarray) -> np.ndarray:
    """Groups for `optimality` from each picture's prompt, integers from 0 on, (N,).

    A prompt with fewer than `LEAST` pictures says too little about what is good for it: the pictures of all such
    prompts are one group, -1, and are compared with each other.
    """
    _, index, counts = np.unique(prompt, return_inverse=True, return_counts=True)
    return np.where(counts[index] < LEAST, -1, prompt)


def _flat_groups(table: np.ndarray, group: np.ndarray) -> int:
    return sum(bool((np.ptp(table[:, group == label], axis=1) < 1e-6).all()) for label in np.unique(group))
