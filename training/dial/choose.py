"""Which way of drawing is an adapter's own: the one that draws best where all reach the same share of liked pictures.

One pass with slope 0 is plain LoRA weight, which anybody has for nothing. Another way of one pass takes its place where
it is surely better at equal rate, in the variety of pictures or a watched reward, and in none of them surely worse. Two
passes cost twice. So they are for what one pass does not reach: where they surely get further, the own way goes on in
them from the tilt at which one pass ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nft_pipeline.dial.measured import TiltMap
from nft_pipeline.dial.words import way_words

from .curve import RateCurve

RESAMPLED = 200
FURTHER = 0.02  # of the share of liked pictures: what two passes have to reach beyond one at least
CERTAIN, LIKELY = 2.0, 1.0  # standard errors


@dataclass(frozen=True)
class Way:
    """One way of drawing, as it was measured.

    Args:
        tilt_map: mode, slope and map.
        curve: the share of liked pictures over the weight.
        weights, prompts: of each picture, (n,), those of the base model at weight 0 among them.
        values: of each picture by name, (n,), more is better; NaN is missing.
    """

    tilt_map: TiltMap
    curve: RateCurve
    weights: np.ndarray
    prompts: np.ndarray
    values: Mapping[str, np.ndarray]


def choose_way(ways: Sequence[Way]) -> tuple[Way, str]:
    """The adapter's own way, and why it was chosen."""
    plain = ways[0]
    best, reason = plain, way_words(plain.tilt_map)
    for way in ways[1:]:
        if _costs_more(way, plain):
            continue
        differences = at_equal_rate(plain, way)
        better = {name: mean for name, (mean, error) in differences.items() if mean > CERTAIN * error}
        worse = [name for name, (mean, error) in differences.items() if mean < -error]
        if better and not worse:
            listed = ", ".join(f"{name} {mean:+.3f}" for name, mean in better.items())
            best, reason = way, f"{way_words(way.tilt_map)}: at equal rate it is better than plain weight ({listed})"
    further = two_passes_beyond(best, ways)
    if further is not None and further.tilt_map.rises and not best.tilt_map.rises:
        return further, further_words(best, further)
    return best, reason


def two_passes_beyond(one: Way, ways: Sequence[Way], errors: float = CERTAIN) -> Way | None:
    """The way of two passes that reaches further than a way of one pass; None if there is none.

    Args:
        one: the way of one pass.
        ways: all ways.
        errors: how many standard errors of the difference further, beside `FURTHER`.
    """
    for way in ways:
        if _costs_more(way, one):
            error = float(np.hypot(way.tilt_map.errors[-1], one.tilt_map.errors[-1]))
            if way.tilt_map.rates[-1] - one.tilt_map.rates[-1] > max(FURTHER, errors * error):
                return way
    return None


def _costs_more(way: Way, one: Way) -> bool:
    return way.tilt_map.mode == "two_pass" and one.tilt_map.mode != "two_pass"


def further_words(one: Way, two: Way) -> str:
    """How far two passes get, and how far one."""
    return f"two passes reach {two.tilt_map.rates[-1]:.0%}, one {one.tilt_map.rates[-1]:.0%}"


def at_equal_rate(plain: Way, other: Way) -> dict[str, tuple[float, float]]:
    """How much better `other` is than `plain` where both reach the same rate: (mean, standard error) by name.

    The rates are those that both reach, a third and two thirds of the way from the base rate to the lower of the two
    ends. Errors are over prompts, drawn again and again, and over what is not known of the curves: where few pictures
    tell how much is liked at a weight, a way that is liked less than it seems looks better than it is.
    """
    base = float(plain.curve.rate(0.0))
    top = min(plain.tilt_map.rates[-1], other.tilt_map.rates[-1])
    rates = [base + share * (top - base) for share in (1 / 3, 2 / 3)]
    prompts = np.unique(plain.prompts)
    even = np.full(len(prompts), 1 / len(prompts))
    random = np.random.default_rng(0)
    counts = np.vstack([even, random.multinomial(len(prompts), even, RESAMPLED)])
    reached = [_rates_of(way, random) for way in (plain, other)]
    differences = {}
    for name in plain.values:
        values = [
            _values_at(way, name, rates, of_way, prompts, counts)
            for way, of_way in zip((plain, other), reached, strict=True)
        ]
        mean, *resampled = values[1] - values[0]
        known = np.array(resampled)[np.isfinite(resampled)]
        error = float(known.std()) if len(known) > 1 else float("inf")
        if np.isfinite(mean):
            differences[name] = (float(mean), max(error, 1e-9))
    return differences


def _weights_of(way: Way) -> np.ndarray:
    """The weights from 0 on that were drawn, rising."""
    return np.unique(way.weights[way.weights >= 0])


def _rates_of(way: Way, random: np.random.Generator) -> np.ndarray:
    """The rate at each of `_weights_of`, as it is taken to be and then as often as `RESAMPLED` as it may be."""
    weights = _weights_of(way)
    return np.vstack([way.curve.rate(weights), way.curve.draws(weights, RESAMPLED, random)])


def _values_at(
    way: Way, name: str, rates: Sequence[float], reached: np.ndarray, prompts: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """The mean of a value at these rates, straight between the weights that were drawn, (rows,): for each row of the
    rates that these weights reached, (rows, weights), and of how often every prompt counts, (rows, prompts)."""
    known, means = [], []
    for place, weight in enumerate(_weights_of(way)):
        at = (way.weights == weight) & np.isfinite(way.values[name])
        if at.any():
            of_prompt = np.searchsorted(prompts, way.prompts[at])
            total = counts @ np.bincount(of_prompt, way.values[name][at], len(prompts))
            number = counts @ np.bincount(of_prompt, minlength=len(prompts))
            means.append(np.divide(total, number, out=np.full(len(counts), np.nan), where=number > 0))
            known.append(place)
    if len(known) < 2:
        return np.full(len(counts), np.nan)
    order = np.argsort(reached[:, known], axis=1)
    xs, ys = (np.take_along_axis(points, order, 1) for points in (reached[:, known], np.stack(means, 1)))
    return np.array([np.interp(rates, x, y).mean() for x, y in zip(xs, ys, strict=True)])
