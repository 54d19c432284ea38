"""What a person may set about a guided call, checked in one place before anything runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from . import guidance
from .adapters.config import AdapterConfig
from .checks import did_you_mean, is_number, listed
from .dial.measured import Reach, TiltMap
from .dial.tilts import Tilt, check_names
from .errors import GuidanceError
from .laws import COMBINATIONS, LAWS
from .modes import GUIDE, MODES

LARGEST_WEIGHT = 100.0  # of a LoRA, before a call warns; above it somebody mistook one number for another
_HINT = ' Did you mean "{}"?'

Schedule = Callable[[float], float] | Sequence[tuple[float, float]]


@dataclass(frozen=True)
class GuidanceSettings:
    """The settings of a guided call: the law, the noise levels, the rows, the largest push, and the mode.

    Args:
        law: a name in `nft_pipeline.laws.LAWS`, one that takes adapters of these kinds. None is each adapter's own way:
            the map of its calibration, or where it has none for this mode the law of its kind, see `own_law`.
        interval: closed range of noise levels t in [0, 1] that are guided; 1 is pure noise.
        schedule: the factor by which the tilt is multiplied at noise level t: a callable t -> number, or a curve of
            (t, number) points, straight between them and constant beyond the outermost. None is 1 everywhere.
        guide: under classifier-free guidance, "both" guides the unconditional prediction too, with the conditional
            one's alpha; "cond" only the conditional one, which the guidance scale then amplifies.
        cap: the largest push allowed, as `guidance.relative_push` measures it: how far the predicted picture moves, as
            a fraction of its size. A larger one is shortened to it, for each sample by itself. None is no limit.
        mode: a name in `nft_pipeline.modes.MODES`: how the forwards are spent.
        guidance_scale: of classifier-free guidance in this call, by which the map is chosen; None is not known.
        combine: a name in `nft_pipeline.laws.COMBINATIONS`: what several adapters at once mean.
        own_way: whether the mode was left to the adapters' calibrations. It then goes by the tilt that is asked for,
            see `for_tilts`; before that it is the mode of small tilts.
    """

    law: str | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    schedule: Schedule | None = None
    guide: str = "both"
    cap: float | None = None
    mode: str = "two_pass"
    guidance_scale: float | None = None
    combine: str = "all"
    own_way: bool = False

    @classmethod
    def of_call(
        cls,
        configs: Sequence[AdapterConfig],
        *,
        law: str | None = None,
        interval: Sequence[float] | None = None,
        schedule: Any = None,
        guide: str | None = None,
        cap: float | None = None,
        mode: str | None = None,
        guidance_scale: float | None = None,
        combine: str | None = None,
    ) -> GuidanceSettings:
        """Settings from what a person asked for; None means the default.

        The default mode is that of the adapters' calibrations, where there is one adapter or they agree, no law was
        asked for and no cap; else two passes. Once the tilts are known, `for_tilts` says where it goes on in another.

        Args:
            configs: the configs of the adapters in use.
            guidance_scale: of classifier-free guidance in this call; None if it is not known.

        Raises:
            GuidanceError: a value out of range, or one that these adapters or another setting rule out.
        """
        law = None if law is None else _one_of("nft_law", law, LAWS)
        guide = _one_of("nft_guide", "both" if guide is None else guide, GUIDE)
        own_mode = _own_mode(configs) if mode is None and law is None and cap is None else None
        mode = own_mode or mode or "two_pass"
        mode = _one_of("nft_mode", mode, MODES)
        combine = _one_of("nft_combine", "all" if combine is None else combine, COMBINATIONS)
        if cap is not None and (not is_number(cap) or not math.isfinite(cap) or cap <= 0):
            raise GuidanceError(
                f"nft_cap is {cap!r}, expected a number above 0: the largest fraction by which guidance may move the "
                "predicted picture, such as 0.3. For no limit leave it out."
            )
        if cap is not None and MODES[mode].one_pass:
            raise GuidanceError(
                f'nft_cap needs the base model\'s own output to measure the push, and nft_mode="{mode}" never computes '
                'it. Use nft_mode="two_pass", or leave nft_cap out.'
            )
        if COMBINATIONS[combine].odds_scale:
            _check_odds_scale(combine, law, configs)
        for config in configs:
            if law is not None and config.kind not in LAWS[law].kinds:
                others = " or ".join(f'nft_law="{name}"' for name in LAWS if config.kind in LAWS[name].kinds)
                raise GuidanceError(
                    f'nft_law="{law}" needs a positive adapter, which has an alpha head; {config.name!r} is a '
                    f"{config.kind} adapter, whose alpha is inside its weights. Use {others}."
                )
            if MODES[mode].one_pass and config.kind == "positive" and config.base_rate is None and config.dial is None:
                raise GuidanceError(
                    f'nft_mode="{mode}" begins with the base rate stored in the adapter, and {config.name!r} stores '
                    'none (base_rate in nft_config.json). Use nft_mode="two_pass".'
                )
        return cls(
            law,
            _interval((0.0, 1.0) if interval is None else interval),
            None if schedule is None else _schedule(schedule),
            guide,
            None if cap is None else float(cap),
            mode,
            guidance_scale,
            combine,
            own_mode is not None,
        )

    @classmethod
    def of_adapters(
        cls, configs: Mapping[str, AdapterConfig], *, law: Any = None, interval: Any = None, **others: Any
    ) -> tuple[GuidanceSettings, dict[str, GuidanceSettings]]:
        """Settings of a call, and each adapter's own, which differ from them in law and interval at most.

        Args:
            configs: of the adapters in use, by name.
            law, interval: as `of_call`, or a mapping by name; adapters that it does not name have the default. The
                call's own interval then reaches from the lowest to the highest level of any adapter.
            others: the remaining arguments of `of_call`.

        Raises:
            GuidanceError: as `of_call`; a name that is not loaded; or a mapping for something that is the call's own.
        """
        for argument, value in (("nft_law", law), ("nft_interval", interval)):
            if isinstance(value, Mapping):
                check_names(argument, value, configs)
        for name, value in others.items():
            if isinstance(value, Mapping):
                raise GuidanceError(
                    f"nft_{name} is {value!r}, and there is one for all adapters of a call: give it without names. "
                    "nft_strength, nft_beta, nft_rate, nft_law and nft_interval take a dict."
                )
        if isinstance(law, Mapping) and others.get("mode") is None:
            others = {**others, "mode": "two_pass"}
        named = {
            name: {
                "law": law.get(name) if isinstance(law, Mapping) else law,
                "interval": interval.get(name) if isinstance(interval, Mapping) else interval,
            }
            for name in configs
        }
        own = {name: cls.of_call([configs[name]], **{**others, **each}) for name, each in named.items()}
        hull = (min(each.interval[0] for each in own.values()), max(each.interval[1] for each in own.values()))
        call = cls.of_call(
            list(configs.values()), **others, law=None if isinstance(law, Mapping) else law, interval=hull
        )
        return call, {name: replace(call, law=each.law, interval=each.interval) for name, each in own.items()}

    def for_tilts(self, configs: Mapping[str, AdapterConfig], tilts: Mapping[str, Tilt]) -> GuidanceSettings:
        """The settings that draw these tilts: where the mode was left to the adapters, it is that in which they are
        drawn so far, by the furthest of the call's pictures; two passes where adapters differ.

        Args:
            configs: of the adapters in use, by name.
            tilts: of them, for all pictures or for each.
        """
        if not self.own_way:
            return self
        modes = set()
        for name, config in configs.items():
            reach, tilt = self.reach_for(config), tilts[name]
            each = tilt if isinstance(tilt, tuple) else (tilt,)
            modes |= {self.mode if reach is None else reach.map_at(one).mode for one in each}
        return replace(self, mode=modes.pop() if len(modes) == 1 else "two_pass")

    def multiplier(self, noise_level: Tensor) -> Tensor:
        """The factor of the tilt at each noise level: the schedule inside the interval, 0 outside; fp32."""
        factor = noise_level.new_ones(noise_level.shape)
        if self.schedule is not None:
            factor = factor.new_tensor([schedule_value(self.schedule, t) for t in noise_level.tolist()])
        if self.interval != (0.0, 1.0):
            factor = factor * guidance.in_interval(noise_level, self.interval)
        return factor

    def map_for(self, config: AdapterConfig) -> TiltMap | None:
        """The map by which an adapter is drawn; None if a law was asked for, or no calibration covers this mode."""
        if self.law is not None or config.dial is None:
            return None
        return config.dial.map_for(self.mode, self.guidance_scale, self.guide)

    def reach_for(self, config: AdapterConfig) -> Reach | None:
        """How far an adapter goes as it is drawn, whatever the tilt; None if a law was asked for, or no calibration
        covers this mode."""
        if self.law is not None or config.dial is None:
            return None
        return config.dial.reach(None if self.own_way else self.mode, self.guidance_scale, self.guide)

    def law_for(self, config: AdapterConfig) -> str:
        """The law by which an adapter without a map is drawn."""
        return own_law(config) if self.law is None else self.law


def own_law(config: AdapterConfig) -> str:
    """The law of an adapter's kind: "odds", which is exact where alpha and the LoRA are, for those with an alpha head;
    for policies, whose alpha is inside their weights, "nft"."""
    return "odds" if config.kind in LAWS["odds"].kinds else "nft"


def warn_of_weights(
    configs: Mapping[str, AdapterConfig], tilts: Mapping[str, Tilt], own: Mapping[str, GuidanceSettings]
) -> None:
    """Warn of a tilt that could put a LoRA in at more than LARGEST_WEIGHT times its weight; no picture survives that.

    The odds law and a calibration's map stop by themselves where an adapter's reach ends.

    Args:
        configs: of the adapters in use, by name.
        tilts: of them, for all pictures or for each.
        own: each adapter's settings.
    """
    for name, config in configs.items():
        tilt, settings = tilts[name], own[name]
        largest = max((abs(value) for value in tilt), default=0.0) if isinstance(tilt, tuple) else abs(tilt)
        weight = largest if config.kind == "positive" else largest / config.tilt
        if weight > LARGEST_WEIGHT and settings.map_for(config) is None and settings.law_for(config) == "nft":
            warnings.warn(
                f'the tilt of {config.name!r} is {largest:g}, which under nft_law="nft" puts its LoRA in at up to '
                f"{weight:g} times its weight; pictures burn far below {LARGEST_WEIGHT:g}. Strengths of -2 to 4 are "
                "usual (nft_strength), and so is a beta of 2 divided by the adapter's tilt (nft_beta)",
                stacklevel=2,
            )


def _own_mode(configs: Sequence[AdapterConfig]) -> str | None:
    """The mode in which the adapters' own ways begin; None where they differ."""
    modes = {"two_pass" if config.dial is None else config.dial.own.mode for config in configs}
    return modes.pop() if len(modes) == 1 else None


def schedule_value(schedule: Schedule, t: float) -> float:
    """The factor at noise level t in [0, 1].

    Raises:
        GuidanceError: a callable returned something that is not a finite number.
    """
    if callable(schedule):
        value = schedule(t)
        if not is_number(value) or not math.isfinite(value):
            raise GuidanceError(f"nft_schedule gave {value!r} at noise level {t:g}, expected a finite number.")
        return float(value)
    levels, factors = zip(*schedule, strict=True)
    return float(np.interp(t, levels, factors))


def _one_of(name: str, value: Any, known: Iterable[str]) -> str:
    known = list(known)
    if value not in known:
        hint = did_you_mean(value, known, _HINT)
        raise GuidanceError(f"{name} is {value!r}, expected one of {', '.join(map(repr, known))}.{hint}")
    return str(value)


def _check_odds_scale(combine: str, law: str | None, configs: Sequence[AdapterConfig]) -> None:
    for config in configs:
        if config.kind != "positive":
            raise GuidanceError(
                f'nft_combine="{combine}" adds the odds weights of positive adapters; {config.name!r} is a '
                f'{config.kind} adapter, whose scale is none. Leave it out, or use nft_combine="all".'
            )
    if law is not None and not LAWS[law].odds_scale:
        others = " or ".join(f'nft_law="{name}"' for name in LAWS if LAWS[name].odds_scale)
        raise GuidanceError(
            f'nft_combine="{combine}" adds odds weights, and the scale of nft_law="{law}" is none. Use {others}.'
        )


def _interval(interval: Any) -> tuple[float, float]:
    pair = listed(interval) or []
    if len(pair) != 2 or not all(is_number(t) for t in pair) or not 0 <= pair[0] <= pair[1] <= 1:
        raise GuidanceError(
            f"nft_interval is {interval!r}, expected (low, high) with 0 <= low <= high <= 1, in noise level: 1 is pure "
            "noise, where sampling starts, 0 the finished picture."
        )
    return float(pair[0]), float(pair[1])


def _schedule(schedule: Any) -> Schedule:
    if callable(schedule):
        return schedule
    points = list(schedule) if isinstance(schedule, Sequence) and not isinstance(schedule, str) else []
    sound = [
        isinstance(point, Sequence)
        and len(point) == 2
        and all(is_number(value) and math.isfinite(value) for value in point)
        and 0 <= point[0] <= 1
        for point in points
    ]
    levels = [point[0] for point in points] if all(sound) else []
    if not points or not all(sound) or len(set(levels)) != len(levels):
        raise GuidanceError(
            f"nft_schedule is {schedule!r}, expected a callable t -> factor, or points (t, factor) with noise levels t "
            "in [0, 1], no t twice, such as [(0.0, 0.2), (0.7, 1.0)]."
        )
    return sorted((float(t), float(factor)) for t, factor in points)
