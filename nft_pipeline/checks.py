"""One validator for all that is set or stored: settings, an adapter's config, a run's report.

    CHECKS = {"rank": whole(1, 4096), "kind": choice("positive", "policy"), "note": optional(text())}
    faults = value_faults(values, CHECKS)          # ["rank is 0, expected a whole number from 1 to 4096"]

A `Check` is a question and the words for what would have been right, so that every error names what was found and what
was expected. Questions never raise, whatever JSON or YAML holds. Standard library only.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SHOWN = 80  # characters of a value in an error


@dataclass(frozen=True)
class Check:
    """Whether a value is sound, and in words what was expected: "a number above 0", without a full stop."""

    holds: Callable[[Any], bool]
    expected: str


def number(
    low: float = -math.inf, high: float = math.inf, *, above: float | None = None, below: float | None = None
) -> Check:
    """A finite number, no bool: from `low` to `high`, both included, or strictly `above` and `below` a bound."""

    def holds(value: Any) -> bool:
        try:
            finite = type(value) in (int, float) and math.isfinite(value)
        except OverflowError:  # a whole number too large for a float
            return False
        if not finite or not low <= value <= high:
            return False
        return (above is None or value > above) and (below is None or value < below)

    bounds = [f"above {above:g}"] if above is not None else [f"from {low:g}"] if math.isfinite(low) else []
    if math.isfinite(high):
        bounds.append(f"to {high:g}" if bounds and above is None else f"at most {high:g}")
    if below is not None:
        bounds.append(f"below {below:g}")
    words = " ".join(bounds) if above is None and below is None else ", ".join(bounds)
    return Check(holds, f"a number {words}".rstrip())


def whole(low: int, high: int | None = None) -> Check:
    """A whole number from `low` to `high`, both included; no bool."""
    words = f"a whole number from {low}" + (f" to {high}" if high is not None else "")
    return Check(lambda value: type(value) is int and value >= low and (high is None or value <= high), words)


def choice(*known: str) -> Check:
    """One of these texts."""
    words = f"{', '.join(known[:-1])} or {known[-1]}" if len(known) > 1 else known[0]
    return Check(lambda value: isinstance(value, str) and value in known, words)


def text(at_most: int | None = None) -> Check:
    """A text that is not blank."""
    words = "a text that is not empty" + (f", of at most {at_most} characters" if at_most else "")
    return Check(
        lambda value: isinstance(value, str) and bool(value.strip()) and (at_most is None or len(value) <= at_most),
        words,
    )


def flag() -> Check:
    """True or False."""
    return Check(lambda value: isinstance(value, bool), "true or false")


def matching(pattern: str, expected: str) -> Check:
    """A text that a regular expression matches as a whole."""
    compiled = re.compile(pattern)
    return Check(lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None, expected)


def plain_json(expected: str) -> Check:
    """An object that JSON gives back as it was: text keys, lists and no tuples, finite numbers."""

    def holds(value: Any) -> bool:
        try:
            return isinstance(value, Mapping) and json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError, RecursionError):
            return False

    return Check(holds, expected)


def optional(check: Check, words: str = ", or null") -> Check:
    """None, or what `check` asks for."""
    return Check(lambda value: value is None or check.holds(value), check.expected + words)


def own_checks(cls: type, what: str) -> dict[str, Check]:
    """The checks of the fields that a class itself declares, as `rank: Annotated[int, whole(1)]`, by name.

    Args:
        cls: the class, without its bases.
        what: how the error calls a field, such as "setting".

    Raises:
        TypeError: a field without a check, by name.
    """
    checks: dict[str, Check] = {}
    for name, hint in inspect.get_annotations(cls, eval_str=True).items():
        check = next((part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Check)), None)
        if check is None:
            raise TypeError(
                f"the {what} {name} of {cls.__name__} has no check; write it as `{name}: Annotated[TYPE, CHECK]`, "
                "with a check of nft_pipeline.checks such as number(above=0)"
            )
        checks[name] = check
    return checks


def value_faults(
    values: Mapping[str, Any], checks: Mapping[str, Check], where: str = "", show: Callable[[Any], str] | None = None
) -> list[str]:
    """One sentence for every value that its check refuses; names that are missing are no fault here.

    Args:
        values: by name.
        checks: by name; a value without one is not looked at.
        where: put before each name, such as "base_model.".
        show: makes the words for a value; `shown` if None.
    """
    in_words = shown if show is None else show
    return [
        f"{where}{name} is {in_words(values[name])}, expected {check.expected}"
        for name, check in checks.items()
        if name in values and not check.holds(values[name])
    ]


def key_faults(
    found: Iterable[Any],
    known: Iterable[str],
    optional: Iterable[str] = (),
    where: str = "",
    hint: str = "; did you mean {}?",
) -> list[str]:
    """One sentence for every key that is missing or unknown, with the nearest known name.

    Args:
        found: the keys there are.
        known: the keys there may be.
        optional: those of them that may be missing.
        where: put before each name.
        hint: see `did_you_mean`.
    """
    found, known, may_miss = list(found), list(known), set(optional)
    faults = [f"{where}{key} is missing" for key in known if key not in found and key not in may_miss]
    faults += [f"{where}{key} is unknown{did_you_mean(key, known, hint)}" for key in found if key not in known]
    return faults


def plain_number(value: Any) -> Any:
    """The Python number in a numpy scalar, a 0-d array or a 0-d tensor; any other value as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def is_number(value: Any) -> bool:
    """Whether it is a real number, of Python, numpy or torch alike; a bool is none."""
    value = plain_number(value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether it is a number of a whole-number type, of Python, numpy or torch alike; a bool is none."""
    return is_number(value) and isinstance(plain_number(value), int)


def listed(value: Any) -> list[Any] | None:
    """The values in a list, a tuple, or a 1-d array or tensor; None for anything else."""
    if isinstance(value, (list, tuple)):
        return list(value)
    return value.tolist() if getattr(value, "ndim", None) == 1 and hasattr(value, "tolist") else None


def did_you_mean(word: Any, known: Iterable[str], form: str = "; did you mean {!r}?", cutoff: float = 0.6) -> str:
    """A hint at the known name that is nearest to a misspelt one; "" if none is near.

    Args:
        word: what was given.
        known: what there is.
        form: the hint, with {} or {!r} for the name.
        cutoff: how near, from 0 to 1.
    """
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=cutoff)
    return form.format(near[0]) if near else ""


def shown(value: Any) -> str:
    """A value as errors show it: its repr, cut to 80 characters. No more is made of it: YAML's aliases can stand for
    more than fits into memory."""
    words = _beginning(value, 3)
    return words if len(words) <= SHOWN else words[: SHOWN - 3] + "..."


def _beginning(value: Any, deeper: int) -> str:
    """The repr of a value up to what `shown` cuts off, so many lists or mappings deep."""
    some = SHOWN // 2  # more than are shown: each takes three characters at least
    if isinstance(value, str | bytes):
        return repr(value[:SHOWN])
    if not isinstance(value, list | tuple | dict) or not value:
        return repr(value)
    if deeper == 0:
        return "..."
    if isinstance(value, dict):
        pairs = list(itertools.islice(value.items(), some))
        return "{" + ", ".join(f"{_beginning(name, 0)}: {_beginning(of, deeper - 1)}" for name, of in pairs) + "}"
    parts = ", ".join(_beginning(entry, deeper - 1) for entry in value[:some])
    return f"[{parts}]" if isinstance(value, list) else f"({parts}{',' * (len(value) == 1)})"
