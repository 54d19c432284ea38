"""What a section of the settings is: a dataclass in which every setting has its check beside it and its text under it.

    lr: Annotated[float, number(above=0)] = 2e-3
    \"\"\"What it is, in one sentence.

    Raise it when ...
    \"\"\"

The check is one of `nft_pipeline.checks`. The text has at least two paragraphs: what the setting means, with its unit,
and when to change it. docs/settings.md and `diffusion-nft train --explain` are made from both by explain.py, so adding
a setting means writing these lines, and nothing else. Standard library only.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, Field
from typing import Any, ClassVar, Final

from nft_pipeline.checks import Check, own_checks, text

# A setting with this mark beside its check may differ when a stopped run goes on: it changes what the run costs, shows
# or keeps, and not the weights it arrives at.
MAY_CHANGE: Final = "may change when a stopped run goes on"

TEXT = Check(text().holds, "text")
TEXT_OR_EMPTY = Check(lambda value: value == "" or text().holds(value), "text")


def texts(expected: str) -> Check:
    """A list of texts that are not empty; the list itself may be."""
    return Check(lambda value: isinstance(value, list) and all(isinstance(v, str) and v for v in value), expected)


class Section:
    """Base class of all sections; it collects their checks.

    Attributes:
        checks: the check of every setting, by name, those of base classes included.
        may_change: the settings that carry the mark `MAY_CHANGE`.

    Raises:
        TypeError: where a subclass is made, a setting has no check, or a default that its check refuses.
    """

    checks: ClassVar[Mapping[str, Check]] = {}
    may_change: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        hints = inspect.get_annotations(cls, eval_str=True)
        marks = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
        own = own_checks(cls, "setting")
        for name, check in own.items():
            default = vars(cls).get(name, MISSING)
            if default is not MISSING and not isinstance(default, Field) and not check.holds(default):
                raise TypeError(
                    f"the default of the setting {name} of {cls.__name__} is {default!r}, which its own check refuses: "
                    f"expected {check.expected}"
                )
        bases: list[Any] = [base for base in cls.__bases__ if issubclass(base, Section)]
        cls.checks = {name: check for base in reversed(bases) for name, check in base.checks.items()} | own
        cls.may_change = frozenset(name for name, parts in marks.items() if MAY_CHANGE in parts).union(
            *(base.may_change for base in bases)
        )
