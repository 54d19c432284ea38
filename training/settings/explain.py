"""Every setting explained: what stands under each field of the sections, with its range and default.

`diffusion-nft train --explain NAME` prints it, and docs/settings.md is made from it. The texts are read from the source
by `ast`, since Python keeps no docstring of a field. No torch.
"""

from __future__ import annotations

import ast
import inspect
import json
import shutil
import textwrap
from dataclasses import MISSING, dataclass, fields
from itertools import pairwise
from typing import Any

from ..elsewhere import hint_for
from .config import TrainConfig
from .section import MAY_CHANGE, Section

REQUIRED, LEFT_OUT = "required", "left out"


@dataclass(frozen=True)
class Explained:
    """One setting, in words.

    Args:
        name: as it stands in YAML.
        expected: type, range or choices: "a number above 0".
        default: as YAML has it, "left out", or "required".
        may_change: whether it may differ when a stopped run goes on.
        paragraphs: of its text; what it is, then when to change it.
    """

    name: str
    expected: str
    default: str
    may_change: bool
    paragraphs: tuple[str, ...]

    @property
    def facts(self) -> str:
        """Range, default and whether it may change, in one line: "a number above 0; default 0.002"."""
        words = {REQUIRED: REQUIRED, LEFT_OUT: f"{LEFT_OUT} by default"}
        default = words.get(self.default, f"default {self.default}")
        return "; ".join([self.expected, default, *([MAY_CHANGE] if self.may_change else [])])

    @property
    def first_sentence(self) -> str:
        """The first sentence of the text, with its full stop, for a list of all settings."""
        return self.paragraphs[0].split(". ")[0].rstrip(".") + "."


@dataclass(frozen=True)
class ExplainedSection:
    """A section with its title, its text and its settings."""

    title: str
    text: str
    settings: tuple[Explained, ...]


def explained_sections() -> list[ExplainedSection]:
    """All sections in the order of settings.yaml.

    Raises:
        TypeError: a setting has no text.
    """
    return [explained_section(section) for section in reversed(TrainConfig.__bases__)]


def explained_section(section: type[Section]) -> ExplainedSection:
    """One section, from its source.

    Raises:
        TypeError: a setting has no text under it.
    """
    title, _, text = inspect.cleandoc(section.__doc__ or "").partition("\n\n")
    under = _texts_under(section)
    settings = []
    for entry in fields(section):  # type: ignore[arg-type]
        paragraphs = tuple(" ".join(part.split()) for part in under.get(entry.name, "").split("\n\n"))
        if not paragraphs[0]:
            raise TypeError(
                f"the setting {entry.name} of {section.__name__} has no text; write one under it, as a string: what it "
                "means, an empty line, and when to change it"
            )
        default = entry.default if entry.default_factory is MISSING else entry.default_factory()
        expected, may_change = section.checks[entry.name].expected, entry.name in section.may_change
        settings.append(Explained(entry.name, expected, _in_yaml(default), may_change, paragraphs))
    return ExplainedSection(title.rstrip("."), " ".join(text.split()), tuple(settings))


def explain(name: str) -> str:
    """One setting in some lines for a terminal; of "all", every section with the first sentence of each setting.

    Raises:
        ValueError: no setting has this name; the nearest one is named.
    """
    sections = explained_sections()
    if name == "all":
        return "\n\n".join(_listed(section) for section in sections)
    for section in sections:
        for setting in section.settings:
            if setting.name == name:
                head = f"{name} ({section.title})\n{_filled(setting.facts)}"
                return "\n\n".join([head, *map(_filled, setting.paragraphs)])
    hint = hint_for(name, TrainConfig.checks) or "; `diffusion-nft train --explain` lists them"
    raise ValueError(f"{name!r} is not a setting{hint}")


def _listed(section: ExplainedSection) -> str:
    lines = [_filled(setting.first_sentence, f"  {setting.name:<24}", " " * 26) for setting in section.settings]
    return "\n".join([section.title, *lines])


def _filled(text: str, first: str = "  ", others: str = "  ") -> str:
    """Text in lines of the terminal's width, with what stands before the first line and before the others."""
    width = min(shutil.get_terminal_size().columns, 110) - 2
    return textwrap.fill(text, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)


def _texts_under(section: type[Section]) -> dict[str, str]:
    """The string that stands under each field, by the field's name."""
    [body] = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(body, ast.ClassDef)
    under = {}
    for line, after in pairwise(body.body):
        if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            under[line.target.id] = inspect.cleandoc(str(after.value.value))
    return under


def _in_yaml(default: Any) -> str:
    if default is MISSING:
        return REQUIRED
    if default is None:
        return LEFT_OUT
    return default if isinstance(default, str) and default else json.dumps(default)
