"""Calibrating a dial: from a budget of pictures to the map from tilt to weight that the adapter keeps.

1. Draw the base model on held-out prompts and judge it: the base rate p and how it differs between prompts.
2. Add noise to these pictures and read alpha: how far it is to be trusted (trust.py).
3. For each way of drawing, a mode and a slope, draw at a few weights from the same noise, fit the share of liked
   pictures as a curve over the weight (curve.py), draw again at the weights that the curve gives the usual tilts, and
   fit again.
4. Choose the adapter's own way (choose.py). One pass with slope 0 is plain LoRA weight, and another has to beat it; two
   passes are for what one does not reach.
5. Draw the own way at the usual tilts once more, because most pictures will be drawn in it.
6. Invert: the weight of a tilt is where the curve meets the promise of that tilt, averaged over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from tqdm import tqdm

from nft_pipeline.dial.measured import Dial, TiltMap
from nft_pipeline.dial.promise import mean_promise
from nft_pipeline.dial.scale import BARELY
from nft_pipeline.modes import MODES

from ..show import picture_stats
from .choose import LIKELY, Way, choose_way, further_words, two_passes_beyond
from .curve import RateCurve, fit_curve, rate_between_prompts
from .draws import Drawn, Draws
from .judges import read_noised
from .trust import Trust, fit_trust

Judge = Callable[[Drawn, Sequence[int]], np.ndarray]  # drawn pictures and their prompts' places to r, (n,) in [0, 1]

KNOTS = (-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
USUAL = (-2.0, -1.0, 0.5, 1.0, 2.0)
SHARES = {"base": 0.26, "weight": 0.27, "gate": 0.08, "two_pass": 0.17, "own": 0.22}  # of the pictures
LEVELS = 7  # noise levels at which alpha is tried
LEAST_SLOPE = 0.15  # a gate that hardly differs between states is not tried
LEAST = 240  # pictures; with fewer nothing can be said
SEED = 8_000_000  # of the first picture: no training sample's noise, and no sweep's


@dataclass(frozen=True)
class Settings:
    """How to calibrate.

    Args:
        pictures: how many to draw in all, a picture in two passes counting twice.
        judged_by, judge: see `Dial`.
        seed: added to the seed of every picture.
        modes: the modes to map, "single" among them or not.
    """

    pictures: int
    judged_by: str
    judge: str
    seed: int = 0
    modes: tuple[str, ...] = ("single", "two_pass")


@dataclass(frozen=True)
class Calibrated:
    """What was found.

    Args:
        dial: to be kept in the adapter's config.
        learned: whether the share of liked pictures surely rises with the weight.
        reason: in words, what was chosen and why, or why nothing can be promised.
        mean_alphas: (t, mean of alpha) over the steps of the base model, which has to be flat at the base rate (M12).
        forwards: that were spent on it.
        ways: what was compared.
    """

    dial: Dial
    learned: bool
    reason: str
    mean_alphas: tuple[tuple[float, float], ...]
    forwards: int
    ways: tuple[Way, ...] = field(default=(), repr=False)


def calibrate(draws: Draws, judge: Judge, settings: Settings, watch: Judge | None = None) -> Calibrated:
    """Calibrate.

    Args:
        draws: draws the adapter.
        judge: says how far pictures are liked.
        settings: the budget and the rest.
        watch: a reward that was not trained on, for the choice between ways that reach the same rate.

    Raises:
        Interrupted: it was asked to stop.
        ValueError: the budget is below `LEAST`.
    """
    if settings.pictures < LEAST:
        raise ValueError(f"a calibration of {settings.pictures} pictures says nothing; it needs {LEAST} or more")
    with tqdm(total=settings.pictures, desc="calibrating", unit="picture", leave=False) as draws.bar:
        return _Calibration(draws, judge, settings, watch).run()


class _Calibration:
    def __init__(self, draws: Draws, judge: Judge, settings: Settings, watch: Judge | None) -> None:
        self.draws, self.judge, self.settings, self.watch = draws, judge, settings, watch
        base_count = int(SHARES["base"] * settings.pictures)
        prompts = min(len(draws.texts), max(16, base_count // 2))
        # By chance, because lists of prompts are often sorted or take their kinds in turn.
        chosen = np.random.default_rng(SEED).permutation(len(draws.texts))[:prompts]
        # Two pictures of a prompt stand together, so that every stretch says something about variety; and no more where
        # there are prompts enough, because which prompts there are is most of the chance where they are unequal.
        self.rows = [(int(chosen[place // 2 % prompts]), SEED + settings.seed + place) for place in range(base_count)]
        self._prompts = np.array([prompt for prompt, _ in self.rows])
        self.has_head = draws.head is not None

    def run(self) -> Calibrated:
        settings, draws = self.settings, self.draws
        base = draws.draw(self.rows, BARELY if self.has_head else 0.0, "single", 1.0)
        groups = self.prompts_of(np.arange(len(self.rows)))
        r = self.judge(base, groups.tolist())
        keep = np.isfinite(r)
        rate, error, spread = rate_between_prompts(r[keep], groups[keep])
        rate = float(np.clip(rate, 0.5 / len(r), 1 - 0.5 / len(r)))
        trust = self._trust(base, np.where(keep, r, rate), rate) if self.has_head else Trust(1.0, 0.0, ())
        dial = Dial(
            judged_by=settings.judged_by, judge=settings.judge, prompts=len(np.unique(groups)), pictures=len(r),
            rate=rate, rate_error=min(error, 1.0), spread=spread, steps=len(base.levels) or 1, slope=trust.slope,
            offsets=trust.offsets, maps=(identity_map(draws.base.stock_guidance_scale),),
        )  # fmt: skip
        tries: list[_Try] = []
        for mode, slope, share in self._candidates(trust):
            one = _Try(self, mode, slope, dial, base, r)
            for other in tries:
                one.take_over(other)
            one.draw(share * settings.pictures)
            tries.append(one)
        ways = [one.way() for one in tries]
        chosen, reason = choose_way(ways)
        likely = two_passes_beyond(chosen, ways, LIKELY)
        place = next(place for place, way in enumerate(ways) if way is chosen)
        share = SHARES["own"] * settings.pictures / (1 if likely is None else 2)
        tries[place].draw_again(share)
        best = ways[place] = tries[place].way()
        if likely is not None:
            further = next(place for place, way in enumerate(ways) if way is likely)
            tries[further].draw_again(share, above=best.tilt_map.highest)
            ways[further] = tries[further].way()
        then = two_passes_beyond(best, ways)
        if then is not None:
            reason = f"{reason}, and two passes where it ends: {further_words(best, then)}"
        learned = best.tilt_map.rises
        if not learned:
            reason = (
                f"not learnable from this: no weight surely raises the share of liked pictures above {rate:.0%} "
                f"(at most {best.tilt_map.rates[-1]:.0%} ± {best.tilt_map.errors[-1]:.0%})"
            )
        first = replace(best.tilt_map, goes_on=then is not None)
        maps = [first, *(way.tilt_map for way in ways if way is not best)]
        # The first map of a mode is the one that its tilts go by.
        maps = [entry for place, entry in enumerate(maps) if entry.mode not in [other.mode for other in maps[:place]]]
        best_rate = best.curve.rate(0.0)
        note = "" if learned else reason
        alphas = base.alphas.mean(1) if self.has_head else np.zeros(0)
        return Calibrated(
            replace(dial, rate=float(best_rate), rate_error=float(best.curve.error(0.0)), maps=tuple(maps), note=note),
            learned,
            reason,
            tuple((float(t), float(a)) for t, a in zip(base.levels, alphas, strict=False)),
            draws.forwards,
            tuple(ways),
        )

    def prompts_of(self, rows: np.ndarray) -> np.ndarray:
        """The prompts of rows."""
        return self._prompts[rows]

    def _candidates(self, trust: Trust) -> list[tuple[str, float, float]]:
        """(mode, slope, share of the pictures) of the ways to try, plain weight first."""
        # alpha cannot vouch for itself: where it is the judge, nothing says how far it is to be trusted.
        known = self.has_head and self.settings.judged_by != "alpha"
        gate = trust.slope if known and trust.slope >= LEAST_SLOPE else 0.0
        ways = []
        if "single" in self.settings.modes:
            ways.append(("single", 0.0, SHARES["weight"] + (0.0 if gate else SHARES["gate"])))
            ways += [("single", gate, SHARES["gate"])] if gate else []
        if "two_pass" in self.settings.modes:
            ways.append(("two_pass", gate, SHARES["two_pass"]))
        spare = (1 - SHARES["base"] - SHARES["own"]) / sum(share for _, _, share in ways)
        return [(mode, slope, share * spare) for mode, slope, share in ways]

    def _trust(self, base: Drawn, r: np.ndarray, rate: float) -> Trust:
        """alpha of noised base pictures against what they are."""
        draws, count = self.draws, len(self.rows)
        at = np.linspace(0, len(base.levels) - 1, min(LEVELS, len(base.levels))).round().astype(int)
        low, high = draws.base.noise_range()
        # Pure noise is among them, where every sampling begins: training hardly ever draws it, so a head may be wrong
        # there in its own way.
        levels = np.unique(np.clip(base.levels[at], low + 1e-3, high))
        generator = torch.Generator().manual_seed(SEED + self.settings.seed)
        prompts = torch.tensor([prompt for prompt, _ in self.rows])
        alphas = [
            read_noised(draws, base.latents, prompts, level, torch.randn(base.latents.shape, generator=generator))
            for level in levels.tolist()
        ]
        return fit_trust(
            np.repeat(levels, count),
            np.concatenate(alphas),
            np.tile(r, len(levels)),
            np.tile(np.arange(count), len(levels)),
            rate,
        )

    def first_weights(self, mode: str, slope: float, rate: float) -> list[float]:
        """The weights that a way is tried at first, before anything is known of it."""
        lowest = -0.6 if slope == 0 else -min(0.6, 0.9 * rate / (1 - rate))
        is_policy = self.draws.config.kind == "policy"  # whose law goes beyond the LoRA fully on
        if mode == "single":
            return [lowest, lowest / 3, 0.12, 0.3, 0.6, 1.0, 1.4, *([2.0] if is_policy else [])]
        return [lowest, 0.12, 0.35, 0.7, 1.0, *([1.7, 2.5] if is_policy else [])]


class _Try:
    """One way of drawing, and its pictures, judged as they are drawn."""

    def __init__(self, of: _Calibration, mode: str, slope: float, dial: Dial, base: Drawn, r: np.ndarray) -> None:
        self.of, self.mode, self.slope, self.dial = of, mode, slope, dial
        everyone = np.arange(len(r))
        self.weights, self.r, self.rows = [np.zeros(len(r))], [r], [everyone]
        groups = of.prompts_of(everyone)
        self.diversity = [picture_stats.diversity(picture_stats.shrunk(base.pictures), groups)]
        self.watched = [self._watch(base, groups)]
        self.next = 0

    def take_over(self, other: _Try) -> None:
        """Take another way's pictures where both draw the same: at weight 1, which is the LoRA fully on in any mode,
        and in one mode beyond it, where no slope matters."""
        for place, weights in enumerate(other.weights[1:], 1):
            weight = float(weights[0])
            if weight == 1 or (weight > 1 and other.mode == self.mode):
                for name in ("weights", "r", "rows", "diversity", "watched"):
                    getattr(self, name).append(getattr(other, name)[place])

    def draw(self, pictures: float) -> None:
        """Draw at a few weights, then at those that the usual tilts seem to need."""
        has = {float(weights[0]) for weights in self.weights}
        weights = [w for w in self.of.first_weights(self.mode, self.slope, self.dial.rate) if w not in has]
        first = 0.4 * pictures
        self._add(weights, first, least=12)
        self.draw_again(pictures - first)

    def draw_again(self, pictures: float, above: float = -math.inf) -> None:
        """Draw at the weights that the usual tilts above one need by what is known."""
        self._add(_weights_of(self._fit(), self.dial.spread, above), pictures, least=8)

    def way(self) -> Way:
        """Its map, and what choosing between ways goes by."""
        curve, of = self._fit(), self.of
        # Where nothing rises, strength 1 of a policy goes on being the LoRA as it was made.
        unlearned = 1.0 if of.draws.config.kind == "policy" else 0.1
        scale, count = of.draws.base.stock_guidance_scale, sum(map(len, self.rows[1:]))
        tilt_map = invert(curve, self.dial.spread, self.mode, self.slope, scale, count, unlearned)
        values = {"variety": np.concatenate(self.diversity)}
        if of.watch is not None:
            values["watched reward"] = np.concatenate(self.watched)
        return Way(tilt_map, curve, np.concatenate(self.weights), of.prompts_of(np.concatenate(self.rows)), values)

    @property
    def _forwards(self) -> int:
        """Of a step of one picture."""
        return 1 if MODES[self.mode].one_pass else 2

    def _watch(self, drawn: Drawn, groups: np.ndarray) -> np.ndarray:
        watch = self.of.watch
        return np.full(len(groups), math.nan) if watch is None else watch(drawn, groups.tolist())

    def _add(self, weights: Sequence[float], pictures: float, least: int) -> None:
        """Share pictures among the weights, at least so many for each, and draw all in the same batches; each weight's
        are of the noises of those rows of the base that come next."""
        if not weights:
            return
        of, every = self.of, len(self.of.rows)
        each = min(max(least, int(pictures / len(weights) / self._forwards)), every)
        rows = (self.next + np.arange(each * len(weights))) % every
        self.next = (self.next + len(rows)) % every
        each_weight = np.repeat(weights, each)
        noises = [of.rows[row] for row in rows.tolist()]
        drawn = of.draws.draw(noises, each_weight.tolist(), self.mode, self.slope, self.dial)
        groups, small = of.prompts_of(rows), picture_stats.shrunk(drawn.pictures)
        r, watched = of.judge(drawn, groups.tolist()), self._watch(drawn, groups)
        for own in np.split(np.arange(len(rows)), len(weights)):
            self.weights.append(each_weight[own])
            self.r.append(r[own])
            self.rows.append(rows[own])
            self.diversity.append(picture_stats.diversity(small[own], groups[own]))
            self.watched.append(watched[own])

    def _fit(self) -> RateCurve:
        weights, r, rows = (np.concatenate(parts) for parts in (self.weights, self.r, self.rows))
        judged = np.isfinite(self.r[0])  # a row whose picture at weight 0 has no judgement is left out
        keep = np.isfinite(r) & judged[rows]
        place = np.cumsum(judged) - 1
        is_mixture = self.mode == "two_pass" and self.slope > 0
        return fit_curve(weights[keep], r[keep], self.of.prompts_of(rows[keep]), place[rows[keep]], is_mixture)


def identity_map(guidance_scale: float) -> TiltMap:
    """A map under which the tilt is the weight, to stand in for one that is not known yet."""
    ends = (-1.0, 0.0, 1.0)
    return TiltMap(
        mode="single", guidance_scale=max(guidance_scale, 0.0), guide="both", slope=0.0, tilts=ends, weights=ends,
        rates=(0.0, 0.0, 0.0), errors=(0.0, 0.0, 0.0), pictures=1,
    )  # fmt: skip


def _weights_of(curve: RateCurve, spread: float, above: float = -math.inf) -> list[float]:
    """The weights that the usual tilts above one need by a curve, and its end."""
    rate = float(curve.rate(0.0))
    targets = [mean_promise(rate, spread, tilt) for tilt in USUAL if tilt > above]
    weights = {round(curve.weight(target), 3) for target in targets} | {round(curve.high, 3)}
    return sorted(weight for weight in weights if abs(weight) > 1e-3)


def invert(
    curve: RateCurve,
    spread: float,
    mode: str,
    slope: float,
    guidance_scale: float,
    pictures: int,
    unlearned: float = 0.1,
) -> TiltMap:
    """The map: the weight of each tilt, and the tilts at which the adapter's reach ends; `unlearned` is the last weight
    where the rate does not rise."""
    rate = float(np.clip(curve.rate(0.0), 1e-4, 1 - 1e-4))
    low = _tilt_of(rate, spread, float(curve.rate(curve.low)))
    high = _tilt_of(rate, spread, float(curve.rate(curve.high)))
    inner = [tilt for tilt in KNOTS if low + 0.1 < tilt < high - 0.1]
    knots = {tilt: curve.weight(mean_promise(rate, spread, tilt)) for tilt in inner}
    if low < -0.05:
        knots[low] = curve.low
    if high > 0.05:
        knots[high] = curve.high
    # Outwards from 0, which is the base model, weights have to grow.
    points, ends = {0.0: 0.0}, (0.0, 0.0)
    for tilt in sorted(knots, key=abs):
        place, weight = round(tilt, 4), round(knots[tilt], 5)
        if (tilt > 0 and weight > ends[1]) or (tilt < 0 and weight < ends[0]):
            points[place] = weight
            ends = min(ends[0], weight), max(ends[1], weight)
    if ends[1] == 0:
        points[0.1] = max(round(curve.high, 5), unlearned)  # a map has two points at least
    tilts = sorted(points)
    weights = [points[tilt] for tilt in tilts]
    return TiltMap(
        mode=mode,
        guidance_scale=max(guidance_scale, 0.0),
        guide="both",
        slope=slope,
        tilts=tuple(tilts),
        weights=tuple(weights),
        rates=tuple(round(float(curve.rate(weight)), 4) for weight in weights),
        errors=tuple(round(min(float(curve.error(weight)), 1.0), 4) for weight in weights),
        pictures=pictures,
    )


def _tilt_of(rate: float, spread: float, target: float) -> float:
    """The tilt whose promise is `target`, from -8 to 8."""
    low, high = -8.0, 8.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_promise(rate, spread, middle) < target else (low, middle)
    return (low + high) / 2
