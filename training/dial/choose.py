"""Which way of drawing is an adapter's own: the one that draws best where all reach the same share of liked pictures.

One pass with slope 0 is plain LoRA weight, which anybody has for nothing. Another way takes its place where it is
surely better at equal rate, in the variety of pictures or a watched reward, and in none of them surely worse; and two
passes, which cost twice, only where they reach further than one pass does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nft_pipeline.dial.measured import TiltMap
from nft_pipeline.dial.words import way_words

from .curve import RateCurve

RESAMPLED = 200
FURTHER = 0.05  # of the share of liked pictures: what two passes have to reach beyond one
CERTAIN = 2.0


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
        if way.tilt_map.mode == "two_pass" and plain.tilt_map.mode != "two_pass":
            gain = way.tilt_map.rates[-1] - best.tilt_map.rates[-1]
            error = float(np.hypot(way.tilt_map.errors[-1], best.tilt_map.errors[-1]))
            if gain > FURTHER + CERTAIN * error:
                best, reason = way, f"two passes reach {way.tilt_map.rates[-1]:.0%}, one {best.tilt_map.rates[-1]:.0%}"
            continue
        differences = at_equal_rate(plain, way)
        better = {name: mean for name, (mean, error) in differences.items() if mean > CERTAIN * error}
        worse = [name for name, (mean, error) in differences.items() if mean < -error]
        if better and not worse:
            listed = ", ".join(f"{name} {mean:+.3f}" for name, mean in better.items())
            best, reason = way, f"{way_words(way.tilt_map)}: at equal rate it is better than plain weight ({listed})"
    return best, reason


def at_equal_rate(plain: Way, other: Way) -> dict[str, tuple[float, float]]:
    """How much better `other` is than `plain` where both reach the same rate: (mean, standard error) by name.

    The rates are those that both reach, a third and two thirds of the way from the base rate to the lower of the two
    ends. Errors are over prompts, drawn again and again.
    """
    base = float(plain.curve.rate(0.0))
    top = min(plain.tilt_map.rates[-1], other.tilt_map.rates[-1])
    rates = [base + share * (top - base) for share in (1 / 3, 2 / 3)]
    prompts = np.unique(plain.prompts)
    random = np.random.default_rng(0)
    draws = [prompts, *(random.choice(prompts, len(prompts)) for _ in range(RESAMPLED))]
    found = {}
    for name in plain.values:
        differences = []
        for drawn in draws:
            counts = {prompt: count for prompt, count in zip(*np.unique(drawn, return_counts=True), strict=True)}
            pair = [_value_at(way, name, rates, counts) for way in (plain, other)]
            differences.append(pair[1] - pair[0])
        known = np.array(differences[1:])
        known = known[np.isfinite(known)]
        error = float(known.std()) if len(known) > 1 else float("inf")
        if np.isfinite(differences[0]):
            found[name] = (float(differences[0]), max(error, 1e-9))
    return found


def _value_at(way: Way, name: str, rates: Sequence[float], counts: Mapping[int, int]) -> float:
    """The mean over prompts of a value at these rates, straight between the weights that were drawn."""
    points = []
    share = np.array([counts.get(prompt, 0) for prompt in way.prompts], dtype=float)
    for weight in np.unique(way.weights):
        at = (way.weights == weight) & np.isfinite(way.values[name])
        if weight >= 0 and share[at].sum() > 0:
            points.append((float(way.curve.rate(weight)), float(np.average(way.values[name][at], weights=share[at]))))
    if len(points) < 2:
        return float("nan")
    xs, ys = zip(*sorted(points), strict=True)
    return float(np.mean(np.interp(rates, xs, ys)))
