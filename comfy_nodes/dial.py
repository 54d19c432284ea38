"""An adapter's dial in a node's words: the tilt that a rate needs, what a setting will do, and how a picture stands.

What is said here holds for the way in which the adapter is drawn: by one map of its calibration, or, without one, by a
law that keeps the promise M10. For other laws nothing is said. torch and numpy.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from nft_pipeline.adapters.config import AdapterConfig
from nft_pipeline.dial.forecast import forecast
from nft_pipeline.dial.measured import Reach
from nft_pipeline.dial.promise import base_rate, promise, tilt_for_rate
from nft_pipeline.dial.tilts import Tilt
from nft_pipeline.errors import GuidanceError
from nft_pipeline.laws import LAWS
from nft_pipeline.modes import MODES
from nft_pipeline.settings import GuidanceSettings

_STRENGTHS = (-2.0, -1.0, 0.5, 1.0, 2.0, 4.0)  # of the table, where a map reaches them


def mode_in_words(mode: str) -> str:
    """What the nodes call a mode, "exact" or "fast"."""
    return MODES[mode].node or "exact"


def tilt_of_rate(config: AdapterConfig, rate: float, settings: GuidanceSettings) -> float:
    """The tilt at which a share `rate` of the pictures is liked.

    Args:
        config: the adapter's.
        rate: the share that is wanted, in (0, 1).
        settings: choose the map of the calibration.

    Raises:
        GuidanceError: a rate out of range, a law beside it, a rate that the adapter does not reach, or an adapter of
            which it is not known what it does.
    """
    if not 0 < rate < 1:
        raise GuidanceError(
            f"rate is {rate:g}, expected 0 (off) or the share of liked pictures that you want, such as 0.8 for 80 %"
        )
    if settings.law is not None:
        raise GuidanceError(
            f'rate is {rate:g} and law "{settings.law}", but a rate finds the strength itself, by what was measured of '
            'the adapter. Set law to "auto", or rate to 0.'
        )
    reach = settings.reach_for(config)
    if reach is None and (config.kind != "positive" or base_rate(config) is None):
        mode = mode_in_words(settings.mode)
        raise GuidanceError(
            f'rate is {rate:g}, but nobody measured what {config.name!r} does in mode "{mode}". Set rate to 0 and use '
            "strength, or have the adapter measured once (diffusion-nft calibrate)."
        )
    if reach is not None and not reach.gives(rate):
        modes = [entry.mode for entry in reach.maps]
        others = [] if config.dial is None else [entry for entry in config.dial.maps if entry.mode not in modes]
        names = {mode_in_words(entry.mode) for entry in others if Reach.through(entry).gives(rate)}
        elsewhere = "".join(f' Mode "{mode}" reaches {rate:g}.' for mode in sorted(names))
        words = " and then ".join(f'"{mode_in_words(mode)}"' for mode in modes)
        raise GuidanceError(
            f"rate is {rate:g}, and {config.name!r} reaches from {reach.rates[0]:.2f} to {reach.rates[-1]:.2f} "
            f"in mode {words} at CFG {reach.maps[0].guidance_scale:g}. Ask for a rate between "
            f"these; more is not to be had from this adapter.{elsewhere}"
        )
    return tilt_for_rate(_as_drawn(config, settings), rate)


def settings_for_rate(config: AdapterConfig, rate: float, settings: GuidanceSettings) -> GuidanceSettings:
    """The settings to look a rate up with before the CFG is known: at that of the first map that reaches the rate.

    Where none does, and where the CFG is known, they are the settings that were given.
    """
    if settings.guidance_scale is not None or config.dial is None:
        return settings
    for scale in (None, *(entry.guidance_scale for entry in config.dial.maps)):
        found = replace(settings, guidance_scale=scale)
        reach = found.reach_for(config)
        if reach is None or reach.gives(rate):
            return found
    return settings


def promise_line(config: AdapterConfig, tilt: Tilt, settings: GuidanceSettings) -> str:
    """What a tilt will do, before anything is drawn: "34% liked becomes 78% ± 2%"; "" where nothing is known.

    Args:
        config: the adapter's.
        tilt: lambda; one for each picture has no such line.
        settings: the way in which it is drawn; the line says so if it was measured at another CFG or `guide`.
    """
    drawn, reach = _as_drawn(config, settings), settings.reach_for(config)
    promised = _keeps_promise(config, settings) and (reach is not None or drawn.base_rate is not None)
    if isinstance(tilt, tuple) or not promised:
        return ""
    line = str(promise(drawn, tilt / config.tilt))
    elsewhere: list[str] = []
    first = None if reach is None else reach.maps[0]
    if first is not None and settings.guidance_scale not in (None, first.guidance_scale):
        elsewhere.append(f"at CFG {first.guidance_scale:g}")
    if first is not None and settings.guidance_scale != 1 and first.guide != settings.guide:
        elsewhere.append(f"with guide {first.guide}")
    return f"{line} (measured {' and '.join(elsewhere)})" if elsewhere else line


def chances(
    config: AdapterConfig, alpha: Tensor, tilt: Tilt, noise_level: Tensor, settings: GuidanceSettings
) -> Tensor | None:
    """The chance that each picture will be liked if guidance goes on at this tilt (M12); None where nothing is known.

    Args:
        config: the adapter's.
        alpha: as the head read it, (samples,).
        tilt: lambda of this step, for all pictures or for each, with what a schedule or an interval makes of it.
        noise_level: t of the step, (samples,).
        settings: the way in which it is drawn.
    """
    if not _keeps_promise(config, settings):
        return None
    return forecast(config, settings.map_for(config), alpha, tilt, noise_level)


def forecast_line(chances: Tensor) -> str:
    """The chances of the pictures that are being drawn, (samples,), as a sentence."""
    if len(chances) == 1:
        return f"this picture will be liked with {float(chances):.0%}"
    low, high, mean = (f"{float(value):.0%}" for value in (chances.min(), chances.max(), chances.mean()))
    shares = low if low == high else f"{low} to {high}, {mean} on the average"
    return f"these {len(chances)} pictures will be liked with {shares}"


def dial_lines(config: AdapterConfig) -> list[str]:
    """What the calibration of an adapter found, in a line for each map; empty without one."""
    dial = config.dial
    if dial is None:
        return []
    lines = [
        f"measured by {dial.judge}: {dial.rate:.0%} ± {dial.rate_error:.0%} of pictures are liked without guidance "
        f"({dial.prompts} prompts, {dial.pictures} pictures)"
    ]
    for place, entry in enumerate(dial.maps):
        low, high = entry.lowest / config.tilt, entry.highest / config.tilt
        strengths = [low, *(strength for strength in _STRENGTHS if low < strength < high), high]
        rates = np.interp([strength * config.tilt for strength in strengths], entry.tilts, entry.rates)
        row = ", ".join(f"{strength:.2g}: {rate:.0%}" for strength, rate in zip(strengths, rates, strict=True))
        guide = "" if entry.guide == "both" else f", guide {entry.guide}"
        own = " (auto)" if place == 0 else " (auto, beyond it)" if entry in dial.own_reach.maps else ""
        lines.append(
            f"mode {mode_in_words(entry.mode)}{own} at CFG {entry.guidance_scale:g}{guide}, liked at strength {row}"
        )
    return [*lines, dial.note] if dial.note else lines


def _keeps_promise(config: AdapterConfig, settings: GuidanceSettings) -> bool:
    return settings.map_for(config) is not None or LAWS[settings.law_for(config)].odds_scale


def _as_drawn(config: AdapterConfig, settings: GuidanceSettings) -> AdapterConfig:
    """The config with that part of its dial alone by which it is drawn: its reach, or none under a law."""
    reach = settings.reach_for(config)
    if config.dial is None or reach is None:
        rate = base_rate(config) if config.kind == "positive" else None
        return replace(config, dial=None, base_rate=rate)
    return replace(config, dial=replace(config.dial, maps=reach.maps))
