"""A sweep: held-out prompts drawn at several strengths from the same noise, scored and measured.

Every strength has the same prompts and seeds as strength 0, so changes are differences of pairs and have much smaller
errors than the means themselves. Pictures of one prompt are not independent, so errors are over prompts, where there
are enough of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.pool import score
from ..learn.export import Shift
from ..rewards.find import Scorer
from . import picture_stats
from .live import Draw

GROUP = 4  # pictures per prompt
ENOUGH_PROMPTS = 8  # to take errors over prompts
SEED = 7_000_000  # of the first picture: no training sample's noise
Table = dict[float, dict[str, np.ndarray]]  # by strength and by name: a number for each picture, NaN where missing
STATISTICS = ("edge density", "colour entropy", "brightness", "diversity", "distance to base")


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error, and how many pictures it is over."""

    mean: float
    error: float
    n: int


@dataclass(frozen=True)
class SweepPoint:
    """One strength: means by name, of rewards and statistics, and their changes from strength 0, picture by picture."""

    strength: float
    values: Mapping[str, Estimate]
    changes: Mapping[str, Estimate]


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Args:
        points: by rising strength, the first at 0.
        trained: the names of the rewards that were trained on.
        goal: the name in `values` of what was trained for: the reward, or `OVERALL` for the weighted mean of several;
            None if no reward can score new pictures.
        watched: the name of a reward that was not trained on; None if there is none.
        prompts: what prompts these were, in words.
        shift: how far strength 1 moves the log-odds of the goal, see `log_odds_shift`; None if that says nothing.
        others: the names of rewards that were measured beside, and that nothing is concluded from.
    """

    points: tuple[SweepPoint, ...]
    trained: tuple[str, ...]
    goal: str | None
    watched: str | None
    prompts: str
    shift: Shift | None = None
    others: tuple[str, ...] = ()

    @property
    def base(self) -> SweepPoint:
        """The point at strength 0, which is the base model."""
        return self.points[0]

    def lines(self) -> Iterator[dict[str, Any]]:
        """One line per strength, for the run's records."""
        for point in self.points:
            line: dict[str, Any] = {"strength": point.strength}
            for name, value in point.values.items():
                change = point.changes[name]
                line |= {name: value.mean, f"{name} ±": value.error}
                line |= {f"{name} change": change.mean, f"{name} change ±": change.error}
            yield line


OVERALL = "all rewards"


def sweep_rows(prompts: int, size: int) -> list[tuple[int, int]]:
    """(prompt, seed) of about `size` pictures, `GROUP` of each prompt, prompts spread evenly over all of them."""
    count = min(prompts, max(1, size // GROUP))
    each = -(-size // count)
    chosen = np.linspace(0, prompts - 1, count).round().astype(int).tolist()
    rows = [(prompt, number) for prompt in chosen for number in range(each)]
    return [(prompt, SEED + place) for place, (prompt, _) in enumerate(rows[:size])]


def measure_sweep(
    draw: Draw,
    prompt_texts: Sequence[str],
    rows: Sequence[tuple[int, int]],
    strengths: Sequence[float],
    rewards: Mapping[str, Scorer],
    weights: Mapping[str, float],
    watched: tuple[str, Scorer] | None,
    prompts: str,
    others: Mapping[str, Scorer] | None = None,
) -> Sweep:
    """Draw, score and measure.

    Args:
        draw: pictures, uint8 (N, H, W, 3), of rows at a strength; the third argument says in a word what they are for.
        prompt_texts: the prompts that `rows` count.
        rows: (prompt, seed), see `sweep_rows`.
        strengths: 0 among them.
        rewards, weights: the rewards that were trained on and their weights, by name; may be empty.
        watched: the name of a reward that was not trained on, and the reward.
        prompts: what prompts these are, in words.
        others: more rewards by name, to be measured beside.

    Raises:
        RewardError: scores of another number than pictures.
        Interrupted: drawing was asked to stop.
    """
    texts = [prompt_texts[prompt] for prompt, _ in rows]
    groups = np.array([prompt for prompt, _ in rows])
    judges = {**rewards, **({watched[0]: watched[1]} if watched is not None else {}), **(others or {})}
    table = measured(lambda strength: draw(rows, strength, "sweep"), texts, groups, strengths, judges)
    goal = next(iter(rewards), None)
    if len(rewards) > 1:
        goal = OVERALL
        _add_overall(table, weights)
    shift = None
    if goal is not None and 1 in table:
        shift = log_odds_shift(table[0.0][goal], table[1.0][goal], groups)
    named = None if watched is None else watched[0]
    return Sweep(points_of(table, groups), tuple(rewards), goal, named, prompts, shift, tuple(others or ()))


def measured(
    draw: Callable[[float], np.ndarray],
    texts: Sequence[str],
    groups: np.ndarray,
    strengths: Sequence[float],
    judges: Mapping[str, Scorer],
) -> Table:
    """What each picture is worth at each strength, by rising strength.

    Args:
        draw: the pictures at a strength, uint8 (n, H, W, 3); their noise is the same at each.
        texts: their prompts.
        groups: a number for each prompt, (n,).
        strengths: 0 among them.
        judges: the rewards, by name.

    Raises:
        RewardError: scores of another number than pictures.
    """
    base = picture_stats.shrunk(drawn := draw(0.0))
    table: Table = {}
    for strength in sorted(strengths):
        pictures = drawn if strength == 0 else draw(strength)
        scores = {name: score(reward, name, pictures, texts) for name, reward in judges.items()}
        table[strength] = {**scores, **_statistics(picture_stats.shrunk(pictures), base, groups)}
    return table


def points_of(table: Table, groups: np.ndarray) -> tuple[SweepPoint, ...]:
    """Means and changes from strength 0, of what `measured` gives."""
    return tuple(
        SweepPoint(
            strength,
            {name: estimate(value, groups) for name, value in columns.items()},
            {name: estimate(value - table[0.0][name], groups) for name, value in columns.items()},
        )
        for strength, columns in table.items()
    )


def estimate(values: np.ndarray, groups: np.ndarray) -> Estimate:
    """Mean over pictures with its standard error, over prompts where there are enough; NaN is missing."""
    known = np.isfinite(values)
    values, groups = values[known], groups[known]
    if len(values) == 0:
        return Estimate(float("nan"), float("nan"), 0)
    names = np.unique(groups)
    units = values
    if len(names) >= ENOUGH_PROMPTS:
        units = np.array([values[groups == name].mean() for name in names])
    error = float(units.std(ddof=1) / len(units) ** 0.5) if len(units) > 1 else float("nan")
    return Estimate(float(values.mean()), error, len(values))


def log_odds_shift(before: np.ndarray, after: np.ndarray, groups: np.ndarray) -> Shift | None:
    """How far the log-odds of the mean score move from `before` to `after`: the tilt that was reached.

    Half a liked and half a disliked picture are added to each side, so that a rate of 0 or 1 stays finite. The error is
    over prompts where there are enough, to first order in the rates.

    Args:
        before, after: scores of the same prompts and noises, (N,); NaN is missing.
        groups: the prompt of each picture, (N,).

    Returns:
        None unless nearly all scores are near 0 or 1: all in [0, 1], with at least half of the variance p (1 - p) that
        scores of 0 and 1 have. The log-odds of the mean of other scores are not their tilt.
    """
    known = np.isfinite(before) & np.isfinite(after)
    scores, groups = np.stack([before[known], after[known]]), groups[known]
    if scores.shape[1] < 2 or scores.min() < 0 or scores.max() > 1:
        return None
    rates = scores.mean(axis=1)
    if scores[0].var() + scores[1].var() < 0.5 * (rates * (1 - rates)).sum() or np.ptp(scores) == 0:
        return None
    rates = (scores.sum(axis=1) + 0.5) / (scores.shape[1] + 1)
    moved = np.log(rates / (1 - rates))
    parts = (scores - rates[:, None]) / (rates * (1 - rates))[:, None]
    spread = estimate(parts[1] - parts[0], groups)
    return Shift(float(moved[1] - moved[0]), spread.error, spread.n) if np.isfinite(spread.error) else None


def _statistics(pictures: np.ndarray, base: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
    found = (
        picture_stats.edge_density(pictures),
        picture_stats.colour_entropy(pictures),
        picture_stats.brightness(pictures),
        picture_stats.diversity(pictures, groups),
        picture_stats.distance(pictures, base),
    )
    return dict(zip(STATISTICS, found, strict=True))


def _add_overall(table: dict[float, dict[str, np.ndarray]], weights: Mapping[str, float]) -> None:
    """The weighted mean of the rewards in standard deviations from the base model's mean."""
    base = table[0.0]
    for columns in table.values():
        parts = [
            weight * (columns[name] - np.nanmean(base[name])) / max(float(np.nanstd(base[name])), 1e-12)
            for name, weight in weights.items()
        ]
        columns[OVERALL] = np.sum(parts, axis=0) / sum(weights.values())
