"""run_report.json: what a training run measured, beside the adapter it made. The card is drawn from it.

    {"format_version": 1,
     "rewards": [{"name": "ocr", "trained": true, "prompts": "100 held-out prompts", "spread": "standard error",
                  "points": [{"strength": 0, "mean": 0.42, "spread": 0.02, "n": 400}, ...]}, ...],
     "alpha": [{"noise_level": 0.2, "auc": 0.94, "error": 0.03, "n": 1536}, ...],
     "samples": [{"file": "samples/0.png", "prompt": "a red ring", "seed": 0, "strength": 1.0}, ...],
     "hacking": {"verdict": "none seen", "reason": "..."},
     "strength_range": [0.5, 2.0],
     "trained": {"data": "...", "rounds": 1, "passes": 22.5, "anchor": "none", "hardware": "2 CPU cores", "hours": 0.2}}

All but format_version may be missing; the card then says "not measured". `alpha` falls back on
`training["alpha_held_out"]` of nft_config.json, which the trainer has always written. Version 1 is a contract: fields
are added, never renamed. The contract stands in docs/adapter_format.md, and how it grows in
nft_pipeline/files/versions.py. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from nft_pipeline.adapters.config import parse_json
from nft_pipeline.checks import Check, choice, flag, key_faults, matching, number, text, value_faults, whole
from nft_pipeline.errors import AdapterError
from nft_pipeline.files.versions import (
    VERSION_KEY,
    Format,
    Part,
    VersionError,
    known_keys,
    plain,
    unknown_names,
)

REPORT_FILE = "run_report.json"
# A new field with a default gets a row in `added`, any other change a migration: see nft_pipeline/files/versions.py.
FORMAT = Format(version=1, added={}, migrations={})
REPORT_VERSION = FORMAT.version
VERDICTS = ("none seen", "suspected", "seen")
SAMPLE_PATH = r"samples/[A-Za-z0-9][A-Za-z0-9._-]*\.png"


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(number().holds, value)) and value[0] < value[1]


_TEXT = text(2000)
_LIST = Check(lambda value: isinstance(value, list), "a list")
_OBJECT = Check(lambda value: isinstance(value, Mapping), "an object with named fields")
_POINTS = Check(lambda value: isinstance(value, list) and bool(value), "a list that is not empty")
_SAMPLE_FILE = matching(SAMPLE_PATH, 'a picture inside the folder, such as "samples/0.png"')


@dataclass(frozen=True)
class Point(Part):
    """A mean reward at one strength; `spread` is what its curve says, `n` the number of pictures."""

    strength: Annotated[float, number()]
    mean: Annotated[float, number()]
    spread: Annotated[float | None, number(0)]
    n: Annotated[int, whole(1)]


@dataclass(frozen=True)
class Curve(Part):
    """One reward over strength.

    Args:
        name: of the reward.
        trained: whether the adapter was trained on it; a reward it never saw tells an improvement from a trick.
        points: by rising strength.
        prompts: which prompts, in words.
        spread: what the points' spread is, in words, such as "standard error".
    """

    name: Annotated[str, _TEXT]
    trained: Annotated[bool, flag()]
    points: Annotated[tuple[Point, ...], _POINTS]
    prompts: Annotated[str | None, _TEXT] = None
    spread: Annotated[str | None, _TEXT] = None

    def at(self, strength: float) -> Point | None:
        """The point of that strength."""
        return next((point for point in self.points if point.strength == strength), None)


@dataclass(frozen=True)
class Alpha(Part):
    """How well the head ranks (AUC, 0.5 is chance) and its calibration error, at one noise level."""

    noise_level: Annotated[float, number(0, 1)]
    auc: Annotated[float, number(0, 1)]
    error: Annotated[float, number(0, 1)]
    n: Annotated[int, whole(1)]


@dataclass(frozen=True)
class Sample(Part):
    """A picture in the adapter's folder and what it was drawn with."""

    file: Annotated[str, _SAMPLE_FILE]
    prompt: Annotated[str, _TEXT]
    seed: Annotated[int, Check(lambda value: type(value) is int, "a whole number")]
    strength: Annotated[float, number()]


@dataclass(frozen=True)
class Hacking(Part):
    """Whether the reward rose by a trick: "none seen", "suspected" or "seen", and the reason for this verdict."""

    verdict: Annotated[str, Check(choice(*VERDICTS).holds, f"one of {', '.join(VERDICTS)}")]
    reason: Annotated[str, _TEXT]


@dataclass(frozen=True)
class Trained(Part):
    """How the run went: facts that nft_config.json does not hold. None is "not recorded"."""

    data: Annotated[str | None, _TEXT] = None
    rounds: Annotated[int | None, whole(1)] = None
    passes: Annotated[float | None, number(0)] = None
    anchor: Annotated[str | None, _TEXT] = None
    hardware: Annotated[str | None, _TEXT] = None
    hours: Annotated[float | None, number(0)] = None


@dataclass(frozen=True)
class RunReport(Part):
    """The whole file; see the docstring of the module."""

    rewards: Annotated[tuple[Curve, ...], _LIST] = ()
    alpha: Annotated[tuple[Alpha, ...], _LIST] = ()
    samples: Annotated[tuple[Sample, ...], _LIST] = ()
    hacking: Annotated[Hacking | None, _OBJECT] = None
    strength_range: Annotated[tuple[float, float] | None, Check(_is_range, "two rising numbers [low, high]")] = None
    trained: Annotated[Trained, _OBJECT] = Trained()
    format_version: Annotated[int, FORMAT.check] = REPORT_VERSION
    format_minor: Annotated[int, whole(0)] = 0

    def to_json(self) -> str:
        """The text of run_report.json."""
        default = RunReport()
        at_default = [name for name in FORMAT.added if getattr(self, name) == getattr(default, name)]
        values = FORMAT.with_version(plain(self), at_default)
        return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> RunReport:
        """Read strictly. Unknown keys are an error, except in a file of a newer minor version: there they are kept in
        `extra`, and a warning names them.

        Raises:
            AdapterError: a newer version made it; or every fault at once.
        """
        try:
            values = FORMAT.migrated(parse_json(text, REPORT_FILE))
        except VersionError as error:
            raise AdapterError(f"{REPORT_FILE} has faults", [str(error)]) from None
        faults = report_faults(values)
        if faults:
            raise AdapterError(f"{REPORT_FILE} has faults", faults)
        # null is "not measured", as is a field that is missing
        given = {name: value for name, value in values.items() if value is not None or name not in cls.names()}
        report = cls.of({**given, **_parts(given)})
        FORMAT.warn(REPORT_FILE, unknown_names(report), values)
        return report


def _parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a checked report that are more than plain JSON, of those that there are."""
    parts: dict[str, Any] = {}
    if "rewards" in values:
        parts["rewards"] = tuple(map(_curve, values["rewards"]))
    for name, entry_class in (("alpha", Alpha), ("samples", Sample)):
        if name in values:
            parts[name] = tuple(map(entry_class.of, values[name]))
    for name, part in (("hacking", Hacking), ("trained", Trained)):
        if name in values:
            parts[name] = part.of(values[name])
    if "strength_range" in values:
        parts["strength_range"] = tuple(values["strength_range"])
    return parts


def _curve(values: Mapping[str, Any]) -> Curve:
    points = (Point.of({"spread": None, **point}) for point in values["points"])
    return Curve.of({**values, "points": tuple(sorted(points, key=lambda point: point.strength))})


def read_report(data: bytes | None, training: Mapping[str, Any]) -> RunReport:
    """The report of an adapter's folder.

    Args:
        data: run_report.json; None if the folder has none.
        training: the config's training summary, for a run that says its alpha there alone.

    Raises:
        AdapterError: as `RunReport.from_json`.
    """
    report = RunReport() if data is None else RunReport.from_json(data)
    known = training.get("alpha_held_out")
    if report.alpha or not isinstance(known, list) or any(_faults(entry, Alpha.checks, "") for entry in known):
        return report
    return replace(report, alpha=tuple(Alpha(**entry) for entry in known))


def report_faults(values: Mapping[str, Any]) -> list[str]:
    """Every fault of a parsed report of this version, one sentence each."""
    newer = FORMAT.is_newer(values)
    may_miss = tuple(name for name in RunReport.checks if name != VERSION_KEY)
    faults = _faults(values, RunReport.checks, "", may_miss, newer)
    for name, checks, optional in _LISTS:
        entries = values.get(name) or []
        for place, entry in enumerate(entries if isinstance(entries, list) else []):
            where = f"{name}[{place}]."
            faults += _faults(entry, checks, where, optional, newer)
            if name == "rewards" and isinstance(entry, Mapping) and isinstance(entry.get("points"), list):
                for point_place, point in enumerate(entry["points"]):
                    faults += _faults(point, Point.checks, f"{where}points[{point_place}].", ("spread",), newer)
    for name, checks in (("hacking", Hacking.checks), ("trained", Trained.checks)):
        if values.get(name) is not None:
            faults += _faults(values[name], checks, f"{name}.", tuple(checks) if name == "trained" else (), newer)
    return faults


_Checks = Mapping[str, Check]


def _faults(entry: Any, checks: _Checks, where: str, optional: tuple[str, ...] = (), newer: bool = False) -> list[str]:
    if not isinstance(entry, Mapping):
        return [f"{where.rstrip('.') or REPORT_FILE} is {_short(entry)}, expected an object with named fields"]
    faults = key_faults(known_keys(entry, checks, newer), checks, optional, where)
    given = {name: value for name, value in entry.items() if value is not None or name not in optional}
    return faults + value_faults(given, checks, where, _short)


def _short(value: Any) -> str:
    return repr(str(value)[:60])


_LISTS: tuple[tuple[str, _Checks, tuple[str, ...]], ...] = (
    ("rewards", Curve.checks, ("prompts", "spread")),
    ("alpha", Alpha.checks, ()),
    ("samples", Sample.checks, ()),
)
