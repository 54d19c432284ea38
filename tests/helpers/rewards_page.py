"""The table in docs/rewards.md, made from the cards and constructors of the built-in rewards.

    make pages

writes it again. A test compares the two.
"""

from __future__ import annotations

import inspect
from typing import Any

from helpers.made import with_parts
from helpers.repository import ROOT
from nft_pipeline.training.rewards.registry import built_in, import_path

PAGE = ROOT / "docs" / "rewards.md"
WEIGHTS = ("weights", "head", "tokenizer")  # options whose defaults say what is downloaded


def _row(name: str, cls: Any) -> str:
    about = (inspect.getdoc(cls) or "").partition("\n")[0].replace("|", "\\|")
    info = getattr(cls, "info", None)
    if info is None:
        return f"| `{name}` | {about} | as served | | as served | | |\n"
    low, high = info.range
    scale = f"[{low:g}, {high:g}]" if info.middle is None else f"{info.middle:g}, {info.spread:g}"
    options = inspect.signature(cls).parameters
    defaults = [options[option].default for option in WEIGHTS if option in options]
    weights = ", ".join(default for default in defaults if isinstance(default, str))
    gradient = "yes" if cls.differentiable else ""
    memory = f"{info.memory_gb:g}" if info.memory_gb else ""
    return f"| `{name}` | {about} | {scale} | {weights} | {info.licence} | {gradient} | {memory} |\n"


def table() -> str:
    """The table of rewards, in alphabetical order."""
    lines = [
        "| name | score | middle, spread | weights | licence | gradient | memory, GB |\n",
        "|---|---|---|---|---|---|---|\n",
    ]
    lines += [_row(name, import_path(path, name)) for name, path in built_in().items()]
    return "".join(lines)


def page() -> str:
    """The page as it should be: its text as it is, with the table made anew."""
    return with_parts(PAGE, table=table())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
