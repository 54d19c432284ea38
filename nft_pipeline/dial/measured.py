"""What a calibration found, as nft_config.json keeps it in its field `dial`.

    tilt asked for  ->  weight w  ->  scale s of each sample and step (`nft_pipeline.dial.scale`)

A `TiltMap` is that first arrow, for one mode and guidance scale, with the share of liked pictures at each of its tilts.
A `Dial` has one or several maps, the adapter's own first, and what they have in common. A `Reach` is how far it goes in
one way of being drawn: by one map, or by one and then another, where one pass ends and two go on. `diffusion-nft
calibrate` makes a dial. docs/adapter_format.md has the fields. Standard library only.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from ..checks import Check, choice, flag, key_faults, number, text, value_faults, whole
from ..files.versions import Part, known_keys, plain
from ..modes import GUIDE, MODES

JUDGES = ("reward", "alpha", "person")
MAX_KNOTS, MAX_MAPS, MAX_WEIGHT = 64, 32, 4.0
END = 0.005  # a rate is called an end where less than this is missing
CERTAIN = 2.5  # a rise of so many standard errors counts as sure


def _numbers(low: float, high: float, least: int = 1) -> Check:
    each = number(low, high)
    return Check(
        lambda value: (
            isinstance(value, list | tuple) and least <= len(value) <= MAX_KNOTS and all(map(each.holds, value))
        ),
        f"a list of {least} to {MAX_KNOTS} numbers from {low:g} to {high:g}",
    )


def _rising(check: Check) -> Check:
    return Check(
        lambda value: check.holds(value) and all(a < b for a, b in itertools.pairwise(value)),
        f"{check.expected}, each above the one before",
    )


def _are_offsets(value: Any) -> bool:
    level, offset = number(0, 1), number(-20, 20)
    return (
        isinstance(value, list | tuple)
        and len(value) <= MAX_KNOTS
        and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value)
        and all(level.holds(t) and offset.holds(by) for t, by in value)
        and all(a[0] < b[0] for a, b in itertools.pairwise(value))
    )


_SHARE = number(0, 1)


@dataclass(frozen=True, kw_only=True)
class TiltMap(Part):
    """Which weight each tilt needs in one mode and at one guidance scale, and what it gives.

    Args:
        mode: a name in `nft_pipeline.modes.MODES` that is drawn with; "two_pass" stands for "batched" too.
        guidance_scale: the scale of classifier-free guidance it was measured at; 1 is without.
        guide: which predictions were guided under it, "both" or "cond".
        slope: a in logit alpha' = a logit alpha + (1 - a) logit p, how far alpha is trusted (M13). 0 is one weight for
            all samples and steps, which in one pass is plain LoRA weight; 1 is the odds law.
        tilts: the tilts that were mapped, rising, 0 among them.
        weights: the weight of each, rising; 0 at tilt 0.
        rates: the share of liked pictures at each, on the prompts it was measured on.
        errors: the standard error of each.
        pictures: how many pictures were judged for it, those of the base model not counted.
        goes_on: whether the adapter's own way goes on in two passes where this map ends, by the map of the same
            guidance scale and guide: two passes surely get further.
    """

    mode: Annotated[str, choice(*MODES)]
    guidance_scale: Annotated[float, number(0, 100)]
    guide: Annotated[str, choice(*GUIDE)]
    slope: Annotated[float, _SHARE]
    tilts: Annotated[tuple[float, ...], _rising(_numbers(-50, 50, 2))]
    weights: Annotated[tuple[float, ...], _rising(_numbers(-MAX_WEIGHT, MAX_WEIGHT, 2))]
    rates: Annotated[tuple[float, ...], _numbers(0, 1, 2)]
    errors: Annotated[tuple[float, ...], _numbers(0, 1, 2)]
    pictures: Annotated[int, whole(1)]
    goes_on: Annotated[bool, flag()] = False

    @property
    def lowest(self) -> float:
        """The most negative tilt that the adapter reaches."""
        return self.tilts[0]

    @property
    def highest(self) -> float:
        """The largest tilt that the adapter reaches."""
        return self.tilts[-1]

    @property
    def base(self) -> float:
        """The share of liked pictures at tilt 0, drawn as the map says."""
        return self.rates[self.tilts.index(0)]

    @property
    def rises(self) -> bool:
        """Whether the share of liked pictures surely rises with the tilt. Where it does not, nothing was learned."""
        return self.rates[-1] - self.base > CERTAIN * max(self.errors[-1], 1e-3)

    def faults(self, where: str) -> list[str]:
        """What is wrong between its fields, one sentence each."""
        lengths = {name: len(getattr(self, name)) for name in ("tilts", "weights", "rates", "errors")}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} {count}" for name, count in lengths.items())
            return [f"{where} has lists of different lengths ({listed}), expected one number of each per tilt"]
        if 0 not in self.tilts or self.weights[self.tilts.index(0)] != 0:
            return [f"{where} does not map tilt 0 to weight 0, which is the base model"]
        return []


@dataclass(frozen=True)
class Reach:
    """What a dial gives in one way of being drawn, from its lowest tilt to its highest.

    Args:
        maps: the map that tilts are drawn by, and where the way goes on beyond that one's last tilt, the map of two
            passes that they are drawn by there.
        tilts, rates, errors: tilts, rising, with the share of liked pictures at each and its standard error, through
            all maps.
    """

    maps: tuple[TiltMap, ...]
    tilts: tuple[float, ...]
    rates: tuple[float, ...]
    errors: tuple[float, ...]

    @classmethod
    def through(cls, first: TiltMap, then: TiltMap | None = None) -> Reach:
        """By the first map, and from its end on by `then`, where that goes further."""
        points = list(zip(first.tilts, first.rates, first.errors, strict=True))
        if then is None or then.highest <= first.highest or then.rates[-1] <= first.rates[-1]:
            return cls((first,), *zip(*points, strict=True))
        further = zip(then.tilts, then.rates, then.errors, strict=True)
        points += [(t, r, error) for t, r, error in further if t > first.highest and r > first.rates[-1]]
        return cls((first, then), *zip(*points, strict=True))

    def map_at(self, tilt: float) -> TiltMap:
        """The map that a tilt is drawn by."""
        return self.maps[0] if tilt <= self.maps[0].highest else self.maps[-1]

    def gives(self, rate: float) -> bool:
        """Whether some tilt gives this share of liked pictures."""
        return self.rates[0] - END <= rate <= self.rates[-1] + END

    @property
    def lowest(self) -> float:
        """The most negative tilt that is reached."""
        return self.tilts[0]

    @property
    def highest(self) -> float:
        """The largest tilt that is reached."""
        return self.tilts[-1]


def _are_maps(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and 1 <= len(value) <= MAX_MAPS
        and all(isinstance(entry, Mapping | TiltMap) for entry in value)
    )


@dataclass(frozen=True, kw_only=True)
class Dial(Part):
    """What is known of an adapter's dial from having drawn with it.

    Args:
        judged_by: who said which pictures are liked: "reward", "alpha" (the head, at low noise) or "person".
        judge: the name of that reward, or words for who it was.
        prompts: how many prompts were drawn, none of them trained on where there were others.
        pictures: how many pictures of the base model were judged.
        rate: p, the share of them that is liked, or the mean of r.
        rate_error: its standard error.
        spread: the standard deviation of p between prompts, without what chance adds.
        steps: denoising steps of each picture.
        slope: how far alpha is to be trusted, from 0 to 1, by pictures it had not seen (M13); 1 without a head.
        offsets: (t, offset) points by noise level: what is added to alpha's logit so that its mean is right.
        maps: the maps, the first of them the adapter's own way of being drawn.
        note: what else a person should know, in a sentence or two; "" for nothing.
    """

    judged_by: Annotated[str, choice(*JUDGES)]
    judge: Annotated[str, text(200)]
    prompts: Annotated[int, whole(1)]
    pictures: Annotated[int, whole(1)]
    rate: Annotated[float, number(above=0, below=1)]
    rate_error: Annotated[float, _SHARE]
    spread: Annotated[float, number(0, 0.5)]
    steps: Annotated[int, whole(1)]
    slope: Annotated[float, _SHARE]
    offsets: Annotated[
        tuple[tuple[float, float], ...], Check(_are_offsets, "a list of [noise level, offset], levels rising")
    ]
    maps: Annotated[tuple[TiltMap, ...], Check(_are_maps, f"a list of 1 to {MAX_MAPS} objects")]
    note: Annotated[str, Check(lambda value: isinstance(value, str) and len(value) <= 2000, "a text")] = ""

    @property
    def own(self) -> TiltMap:
        """The map of the adapter's own mode."""
        return self.maps[0]

    @property
    def own_reach(self) -> Reach:
        """How far the adapter goes in its own way."""
        return self._own_way_from(self.own)

    def map_for(
        self, mode: str | None, guidance_scale: float | None = None, guide: str | None = None
    ) -> TiltMap | None:
        """The map to draw by: of this mode, at the nearest guidance scale; None if the mode has none.

        Args:
            mode: None takes the first map, whatever its mode, or the one nearest in guidance scale with the same mode.
            guidance_scale: None is the scale of the adapter's own map.
            guide: None takes either.
        """
        mode = self.own.mode if mode is None else "two_pass" if mode == "batched" else mode
        scale = self.own.guidance_scale if guidance_scale is None else guidance_scale
        fitting = [entry for entry in self.maps if entry.mode == mode and (guide is None or entry.guide == guide)]
        if not fitting and scale <= 1:  # without classifier-free guidance all predictions are guided either way
            fitting = [entry for entry in self.maps if entry.mode == mode]
        return min(fitting, key=lambda entry: abs(entry.guidance_scale - scale), default=None)

    def reach(
        self, mode: str | None = None, guidance_scale: float | None = None, guide: str | None = None
    ) -> Reach | None:
        """How far the adapter goes in a mode, at the nearest guidance scale; None if the mode has no map.

        Args:
            mode: None is the adapter's own way, which may go on in two passes where its first map ends.
            guidance_scale, guide: as in `map_for`.
        """
        first = self.map_for(mode, guidance_scale, guide)
        if first is None:
            return None
        return Reach.through(first) if mode is not None else self._own_way_from(first)

    def _own_way_from(self, first: TiltMap) -> Reach:
        beside = ("two_pass", first.guidance_scale, first.guide)
        follows = [entry for entry in self.maps if (entry.mode, entry.guidance_scale, entry.guide) == beside]
        return Reach.through(first, follows[0] if first.goes_on and follows else None)


def dial_faults(values: Any, newer: bool = False, where: str = "dial") -> list[str]:
    """Every fault of a dial as JSON holds it, or as it was made; empty if it is sound or None.

    Args:
        values: an object, a `Dial` or None; anything else is a fault of the field that holds it.
        newer: whether a newer minor version wrote the file, whose unknown keys are kept.
        where: what errors call it.
    """
    if not isinstance(values, Mapping | Dial):
        return []
    faults = _part_faults(values, Dial, where, newer, may_miss=("note",))
    maps: Any = values.maps if isinstance(values, Dial) else values.get("maps")
    if not _are_maps(maps):
        return faults
    for place, entry in enumerate(maps):
        name = f"{where}.maps[{place}]"
        own = _part_faults(entry, TiltMap, name, newer, may_miss=("goes_on",))
        faults += own or TiltMap.of(plain(entry)).faults(name)
    return faults


def _part_faults(
    part: Mapping[str, Any] | Part, kind: type[Part], where: str, newer: bool, may_miss: tuple[str, ...] = ()
) -> list[str]:
    values = plain(part)
    faults = key_faults(known_keys(values, kind.names(), newer), kind.names(), may_miss, where=f"{where}.")
    return faults + value_faults(values, kind.checks, f"{where}.")


def read_dial(values: Mapping[str, Any] | Dial | None) -> Dial | None:
    """A dial from the values of nft_config.json, which `dial_faults` has found sound."""
    if values is None or isinstance(values, Dial):
        return values
    maps = tuple(
        TiltMap.of({name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()})
        for entry in values["maps"]
    )
    offsets = tuple((float(t), float(by)) for t, by in values["offsets"])
    return Dial.of({**values, "maps": maps, "offsets": offsets})
