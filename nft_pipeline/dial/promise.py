"""What a setting of the dial will do: the share of liked pictures, said before anything is drawn.

    without a calibration   the odds law's promise p e^tilt / (1 - p + p e^tilt) (M10); nothing was measured
    with one                the same up to the ends of what was mapped, where the adapter gives no more; with the errors

The promise is per prompt. Where base rates differ between prompts, that of the mean is the mean of the promises, which
is less than the promise of the mean (M11). `mean_promise` averages over a Beta distribution with the mean and the
spread that were measured. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import is_number
from ..errors import GuidanceError
from .measured import END, Dial, Reach, TiltMap

if TYPE_CHECKING:
    from ..adapters.config import AdapterConfig

_STEP, _FAR = 0.005, 100.0  # of the grid over logits, and the largest tilt there
END_OF_ANOTHER = 0.02  # of the share of liked pictures: another mode that surely reaches so much further is named
SAME_SCALE = 0.25  # guidance scales this near to each other share a map


@dataclass(frozen=True)
class Promise:
    """What a setting will do.

    Args:
        tilt: lambda that was asked for.
        base: the share of liked pictures without guidance.
        rate: the share with it.
        error: the standard error of `rate`; NaN where nothing was measured.
        measured: whether a calibration stands behind it.
        mode: the mode it holds for.
        limit: in words, what cannot be had or was not measured; "" where the promise needs no such words.
    """

    tilt: float
    base: float
    rate: float
    error: float
    measured: bool
    mode: str
    limit: str = ""

    def __str__(self) -> str:
        spread = f" ± {self.error:.0%}" if self.error >= END else ""
        source = "" if self.measured else " (not measured: what the odds law promises if alpha and the LoRA were exact)"
        words = f"{self.base:.0%} liked becomes {self.rate:.0%}{spread}{source}"
        return f"{words}; {self.limit}" if self.limit else words


def odds_rate(rate: float, tilt: float) -> float:
    """`p e^tilt / (1 - p + p e^tilt)`, the odds of p multiplied by e^tilt (M10), for p in [0, 1] and a finite tilt."""
    if rate <= 0 or rate >= 1:
        return rate
    return 1 / (1 + math.exp(-(math.log(rate / (1 - rate)) + tilt)))


def mean_promise(rate: float, spread: float, tilt: float) -> float:
    """The promise averaged over prompts whose base rates have this mean and standard deviation (M11).

    Args:
        rate: the mean base rate, in (0, 1).
        spread: the standard deviation between prompts; 0 is all alike. Rates are taken to be Beta distributed.
        tilt: any finite number.
    """
    most = rate * (1 - rate)
    if spread**2 < 1e-4 * most:
        return odds_rate(rate, tilt)
    total = most / min(spread**2, 0.98 * most) - 1
    a, b = rate * total, (1 - rate) * total
    # On the logit scale, where the density of Beta has no infinite ends, only long tails. Beyond the grid these are
    # e^(a x) and e^(-b x), and the promise is 0 or 1.
    tilt = min(max(tilt, -_FAR), _FAR)
    end = 30 + abs(tilt)
    logits = np.arange(-end, end + _STEP, _STEP)
    log_density = a * np.minimum(logits, 0) - b * np.maximum(logits, 0) - total * np.log1p(np.exp(-np.abs(logits)))
    top = float(log_density.max())
    density = np.exp(log_density - top)
    below, above = math.exp(-a * end - top) / a / _STEP, math.exp(-b * end - top) / b / _STEP
    promises = 1 / (1 + np.exp(-np.clip(logits + tilt, -_FAR, _FAR)))
    return float((density @ promises + above) / (density.sum() + below + above))


def promise(
    config: AdapterConfig,
    strength: float = 1.0,
    *,
    rate: float | Sequence[float] | None = None,
    spread: float = 0.0,
    mode: str | None = None,
    guidance_scale: float | None = None,
) -> Promise:
    """What an adapter at a strength will do to the share of liked pictures.

    Args:
        config: the adapter's.
        strength: 0 is the base model, 1 as the author shipped it.
        rate: the base rate of the prompt in question, in (0, 1), or one for each of several prompts, whose promises are
            averaged (M11); None is that of the prompts it was calibrated on, or the stored base rate.
        spread: where `rate` is one number and the mean of several prompts, the standard deviation between their rates.
        mode: None is the adapter's own.
        guidance_scale: that is drawn with; None is the scale of the calibration.

    Raises:
        GuidanceError: a value out of range, or nothing is known of the base rate.
    """
    given: Any = [rate] if is_number(rate) else rate
    rates = None if given is None else [float(p) for p in given]
    if rates is not None and not (rates and all(0 < p < 1 for p in rates)):
        raise GuidanceError(
            f"rate is {rate!r}, expected a number between 0 and 1, or several: the share of liked pictures without "
            "guidance."
        )
    if not is_number(spread) or spread < 0 or (spread > 0 and (rates is None or len(rates) > 1)):
        raise GuidanceError(
            f"spread is {spread!r} beside rate {rate!r}, expected a number of 0 or more: how far the base rates of "
            "prompts differ whose mean is rate. Leave it out for one prompt, or give rate as a list."
        )
    if not is_number(strength) or not math.isfinite(strength):
        raise GuidanceError(f"strength is {strength!r}, expected a finite number: 0 is the base model.")
    tilt, dial = float(strength) * config.tilt, config.dial
    reach = None if dial is None else dial.reach(mode, guidance_scale)
    if dial is None or reach is None:
        base, result = _unmeasured(config, rates, spread, tilt)
        return Promise(tilt, base, result, math.nan, False, mode or "two_pass")
    reached, drawn = min(max(tilt, reach.lowest), reach.highest), reach.map_at(tilt)
    error = float(np.interp(reached, reach.tilts, reach.errors))
    base = reach.maps[0].base if rates is None else float(np.mean(rates))
    result = _rate_at(reach, reached, rates, spread)
    beyond = _reach_limit(dial, reach, tilt, config.tilt, rates, spread)
    limits = [beyond, _scale_limit(drawn, guidance_scale)]
    return Promise(tilt, base, result, error, True, drawn.mode, "; ".join(filter(None, limits)))


def _rate_at(mapped: Reach | TiltMap, tilt: float, rates: Sequence[float] | None, spread: float) -> float:
    """The share at a tilt that is reached: of the prompts with these rates, or of those that were calibrated on."""
    return float(np.interp(tilt, mapped.tilts, mapped.rates)) if rates is None else _mean_of(rates, spread, tilt)


def _mean_of(rates: Sequence[float], spread: float, tilt: float) -> float:
    """The promise averaged over these rates, or over those around the only one."""
    return float(np.mean([mean_promise(p, spread, tilt) for p in rates]))


def _unmeasured(
    config: AdapterConfig, rates: Sequence[float] | None, spread: float, tilt: float
) -> tuple[float, float]:
    """(base rate, rate) by the odds law alone, where no map says what the adapter does."""
    base = base_rate(config)
    each = rates if rates is not None else [] if base is None else [base]
    if not each:
        raise GuidanceError(
            f"nothing is known of the base rate of {config.name!r}, so nothing can be promised. Calibrate it "
            "(diffusion-nft calibrate), or give the prompt's own rate."
        )
    return float(np.mean(each)), _mean_of(each, spread, tilt)


def base_rate(config: AdapterConfig) -> float | None:
    """p: as it was measured by a calibration, or by the training; None if nobody measured it."""
    return config.base_rate if config.dial is None else config.dial.rate


def _reach_limit(
    dial: Dial, reach: Reach, tilt: float, tilt_of_one: float, rates: Sequence[float] | None, spread: float
) -> str:
    """In words, that a tilt is beyond what the adapter reaches, or that it learned nothing.

    Which mode surely reaches further was measured on the prompts of the calibration; what is said of it, as of the
    mode itself, is of the prompts that were asked about.
    """
    if tilt > 0 and not dial.own.rises:
        return dial.note or "no strength of this adapter surely raises the share of liked pictures"
    if reach.lowest <= tilt <= reach.highest:
        return ""
    end, sign = (-1, 1) if tilt > 0 else (0, -1)
    share = _rate_at(reach, reach.tilts[end], rates, spread)
    reached = f"it reaches {share:.0%} at strength {reach.tilts[end] / tilt_of_one:.2g}"
    surely = [
        other
        for other in dial.maps
        if other.mode != reach.map_at(tilt).mode
        and other.guidance_scale == reach.maps[0].guidance_scale
        and sign * (other.rates[end] - reach.rates[end])
        > END_OF_ANOTHER + math.hypot(other.errors[end], reach.errors[end])
    ]
    for other in surely:
        further = _rate_at(other, other.tilts[end], rates, spread)
        if sign * (further - share) > END:
            return f"{reached}; mode {other.mode} reaches {further:.0%}"
    return f"more is not to be had from this adapter: {reached}"


def _scale_limit(tilt_map: TiltMap, guidance_scale: float | None) -> str:
    """In words, that the map was measured at another scale of classifier-free guidance, which multiplies the dial
    (M17). Scales of 0 and 1 are both without it."""
    if guidance_scale is None or abs(max(guidance_scale, 1.0) - max(tilt_map.guidance_scale, 1.0)) <= SAME_SCALE:
        return ""
    return (
        f"measured at guidance scale {tilt_map.guidance_scale:g}, and at {guidance_scale:g} the dial does something "
        "else: run diffusion-nft calibrate with that --guidance-scale"
    )


def tilt_for_rate(
    config: AdapterConfig, target: float, *, mode: str | None = None, guidance_scale: float | None = None
) -> float:
    """The tilt at which a share `target` of the pictures is liked: `rho = (target - p) / (p (1 - target))` for one
    prompt, on the average over prompts through the map of the calibration.

    Args:
        config: the adapter's.
        target: the share that is wanted, in (0, 1).
        mode, guidance_scale: as in `promise`.

    Raises:
        GuidanceError: out of range, beyond what the adapter reaches, or the base rate is not known.
    """
    if not is_number(target) or not 0 < target < 1:
        raise GuidanceError(f"nft_rate is {target!r}, expected a number between 0 and 1: the share of liked pictures.")
    dial = config.dial
    reach = None if dial is None else dial.reach(mode, guidance_scale)
    if reach is None:
        base = base_rate(config)
        if base is None or config.kind != "positive":
            missing = "it was never calibrated" if dial is None else f"its calibration has no map of the mode {mode}"
            raise GuidanceError(
                f"nft_rate needs to know what {config.name!r} does, and {missing}. Run diffusion-nft calibrate on it "
                "once, or give nft_strength."
            )
        return math.log(target / (1 - target)) - math.log(base / (1 - base))
    if not reach.gives(target):
        modes = " and then ".join(entry.mode for entry in reach.maps)
        raise GuidanceError(
            f"nft_rate is {target:g}, and {config.name!r} reaches shares from {reach.rates[0]:.2f} to "
            f"{reach.rates[-1]:.2f} in the mode {modes} (measured on {config.dial.prompts if config.dial else 0} "
            "prompts). Ask for one of these; more is not to be had from this adapter."
        )
    return float(np.interp(target, np.maximum.accumulate(reach.rates), reach.tilts))


def tilt_at_weight(tilt_map: TiltMap, weight: float) -> float:
    """The tilt that a weight stands for by a map, at most as far as the map reaches."""
    return float(np.interp(weight, tilt_map.weights, tilt_map.tilts))
