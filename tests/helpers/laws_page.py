"""The tables of laws, modes and combinations in docs/api.md, made from `nft_pipeline.laws` and `nft_pipeline.modes`."""

from __future__ import annotations

from helpers.made import with_parts
from helpers.repository import ROOT
from nft_pipeline.laws import COMBINATIONS, LAWS
from nft_pipeline.modes import MODES

PAGE = ROOT / "docs" / "api.md"


def laws() -> str:
    """The table of laws."""
    rows = [f'| `"{name}"` | {law.formula} | {", ".join(law.kinds)} | {law.help} |\n' for name, law in LAWS.items()]
    return "".join(["| law | scale s | adapters | |\n|---|---|---|---|\n", *rows])


def modes() -> str:
    """The table of modes."""
    rows = [f'| `"{name}"` | {_cell(mode.help)} |\n' for name, mode in MODES.items()]
    return "".join(["| mode | |\n|---|---|\n", *rows])


def combinations() -> str:
    """The table of combinations."""
    rows = [f'| `"{name}"` | {_cell(combination.help)} |\n' for name, combination in COMBINATIONS.items()]
    return "".join(["| combination | |\n|---|---|\n", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def page() -> str:
    """The page as it should be: its text as it is, with its tables made anew."""
    return with_parts(PAGE, laws=laws(), modes=modes(), combinations=combinations())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
