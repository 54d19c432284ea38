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
are added, never renamed. Standard library only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nft_pipeline.adapters.config import key_faults, parse_json
from nft_pipeline.errors import AdapterError

REPORT_FILE = "run_report.json"
REPORT_VERSION = 1
VERDICTS = ("none seen", "suspected", "seen")
SAMPLE_PATH = re.compile(r"samples/[A-Za-z0-9][A-Za-z0-9._-]*\.png")


@dataclass(frozen=True)
class Point:
    """A mean reward at one strength; `spread` is what its curve says, `n` the number of pictures."""

    strength: float
    mean: float
    spread: float | None
    n: int


@dataclass(frozen=True)
class Curve:
    """One reward over strength.

    Args:
        name: of the reward.
        trained: whether the adapter was trained on it; a reward it never saw tells an improvement from a trick.
        points: by rising strength.
        prompts: which prompts, in words.
        spread: what the points' spread is, in words, such as "standard error".
    """

    name: str
    trained: bool
    points: tuple[Point, ...]
    prompts: str | None = None
    spread: str | None = None

    def at(self, strength: float) -> Point | None:
        """The point of that strength."""
        return next((point for point in self.points if point.strength == strength), None)


@dataclass(frozen=True)
class Alpha:
    """How well the head ranks (AUC, 0.5 is chance) and its calibration error, at one noise level."""

    noise_level: float
    auc: float
    error: float
    n: int


@dataclass(frozen=True)
class Sample:
    """A picture in the adapter's folder and what it was drawn with."""

    file: str
    prompt: str
    seed: int
    strength: float


@dataclass(frozen=True)
class Hacking:
    """Whether the reward rose by a trick: "none seen", "suspected" or "seen", and the reason for this verdict."""

    verdict: str
    reason: str


@dataclass(frozen=True)
class Trained:
    """How the run went: facts that nft_config.json does not hold. None is "not recorded"."""

    data: str | None = None
    rounds: int | None = None
    passes: float | None = None
    anchor: str | None = None
    hardware: str | None = None
    hours: float | None = None


@dataclass(frozen=True)
class RunReport:
    """The whole file; see the docstring of the module."""

    rewards: tuple[Curve, ...] = ()
    alpha: tuple[Alpha, ...] = ()
    samples: tuple[Sample, ...] = ()
    hacking: Hacking | None = None
    strength_range: tuple[float, float] | None = None
    trained: Trained = Trained()
    format_version: int = REPORT_VERSION

    def to_json(self) -> str:
        """The text of run_report.json."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> RunReport:
        """Read strictly.

        Raises:
            AdapterError: every fault at once.
        """
        values = parse_json(text, REPORT_FILE)
        faults = report_faults(values)
        if faults:
            raise AdapterError(f"{REPORT_FILE} has faults", faults)
        curves = []
        for curve in values.get("rewards") or ():
            points = tuple(Point(**{"spread": None, **point}) for point in curve["points"])
            curves.append(Curve(**{**curve, "points": tuple(sorted(points, key=lambda point: point.strength))}))
        span = values.get("strength_range")
        return cls(
            rewards=tuple(curves),
            alpha=tuple(Alpha(**entry) for entry in values.get("alpha") or ()),
            samples=tuple(Sample(**entry) for entry in values.get("samples") or ()),
            hacking=Hacking(**values["hacking"]) if values.get("hacking") else None,
            strength_range=tuple(span) if span else None,
            trained=Trained(**(values.get("trained") or {})),
        )


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
    if report.alpha or not isinstance(known, list) or any(_faults(entry, _ALPHA, "") for entry in known):
        return report
    return RunReport(**{**vars(report), "alpha": tuple(Alpha(**entry) for entry in known)})


def report_faults(values: Mapping[str, Any]) -> list[str]:
    """Every fault of a parsed report, one sentence each."""
    version = values.get("format_version")
    if type(version) is int and version > REPORT_VERSION:
        return [f"format_version is {version}, this version of diffusion-nft reads {REPORT_VERSION}: update it"]
    faults = _faults(values, _REPORT, "", optional=("rewards", "alpha", "samples", *_SINGLE, "strength_range"))
    for name, table, optional in _LISTS:
        entries = values.get(name) or []
        for number, entry in enumerate(entries if isinstance(entries, list) else []):
            where = f"{name}[{number}]."
            faults += _faults(entry, table, where, optional)
            if name == "rewards" and isinstance(entry, Mapping) and isinstance(entry.get("points"), list):
                for place, point in enumerate(entry["points"]):
                    faults += _faults(point, _POINT, f"{where}points[{place}].", ("spread",))
    for name, table in _SINGLE.items():
        if values.get(name) is not None:
            faults += _faults(values[name], table, f"{name}.", tuple(table) if name == "trained" else ())
    return faults


_Table = dict[str, tuple[Callable[[Any], bool], str]]


def _faults(entry: Any, table: _Table, where: str, optional: tuple[str, ...] = ()) -> list[str]:
    if not isinstance(entry, Mapping):
        return [f"{where.rstrip('.') or REPORT_FILE} is {str(entry)[:60]!r}, expected an object with named fields"]
    faults = key_faults(list(entry), list(table), optional, where)
    for name, (check, expected) in table.items():
        absent = name not in entry or (entry[name] is None and name in optional)
        if not absent and not check(entry[name]):
            faults.append(f"{where}{name} is {str(entry[name])[:60]!r}, expected {expected}")
    return faults


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and len(value) <= 2000


def _count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_number, value)) and value[0] < value[1]


_A_NUMBER = (_number, "a number")
_A_TEXT = (_text, "a text that is not empty, of at most 2000 characters")
_A_LIST = (lambda value: isinstance(value, list), "a list")
_AN_OBJECT = (lambda value: isinstance(value, Mapping), "an object with named fields")
_A_COUNT = (_count, "a whole number from 1")
_NOT_NEGATIVE = (lambda value: _number(value) and value >= 0, "a number from 0")
_FRACTION = (lambda value: _number(value) and 0 <= value <= 1, "a number from 0 to 1")
_POINT: _Table = {"strength": _A_NUMBER, "mean": _A_NUMBER, "spread": _NOT_NEGATIVE, "n": _A_COUNT}
_CURVE: _Table = {
    "name": _A_TEXT,
    "trained": (lambda value: isinstance(value, bool), "true or false"),
    "points": (lambda value: isinstance(value, list) and bool(value), "a list that is not empty"),
    "prompts": _A_TEXT,
    "spread": _A_TEXT,
}
_ALPHA: _Table = {"noise_level": _FRACTION, "auc": _FRACTION, "error": _FRACTION, "n": _A_COUNT}
_SAMPLE: _Table = {
    "file": (
        lambda value: isinstance(value, str) and SAMPLE_PATH.fullmatch(value) is not None,
        'a picture inside the folder, such as "samples/0.png"',
    ),
    "prompt": _A_TEXT,
    "seed": (lambda value: type(value) is int, "a whole number"),
    "strength": _A_NUMBER,
}
_HACKING: _Table = {
    "verdict": (lambda value: value in VERDICTS, f"one of {', '.join(VERDICTS)}"),
    "reason": _A_TEXT,
}
_TRAINED: _Table = {
    "data": _A_TEXT,
    "rounds": _A_COUNT,
    "passes": _NOT_NEGATIVE,
    "anchor": _A_TEXT,
    "hardware": _A_TEXT,
    "hours": _NOT_NEGATIVE,
}
_SINGLE = {"hacking": _HACKING, "trained": _TRAINED}
_LISTS: tuple[tuple[str, _Table, tuple[str, ...]], ...] = (
    ("rewards", _CURVE, ("prompts", "spread")),
    ("alpha", _ALPHA, ()),
    ("samples", _SAMPLE, ()),
)
_REPORT: _Table = {
    "format_version": (lambda value: type(value) is int, f"the whole number {REPORT_VERSION}"),
    "rewards": _A_LIST,
    "alpha": _A_LIST,
    "samples": _A_LIST,
    "hacking": _AN_OBJECT,
    "strength_range": (_range, "two rising numbers [low, high]"),
    "trained": _AN_OBJECT,
}
