"""What the README repeats: its count of pipelines and families, made from the zoo of the tests and the registry, and
the two tables of its dial, made from docs/measured/tilt.md."""

from __future__ import annotations

import re
from collections.abc import Sequence

from helpers.repository import ROOT
from helpers.zoo import CASES
from nft_pipeline.families.registry import FAMILIES

PAGE = ROOT / "README.md"
MEASURED = ROOT / "docs" / "measured" / "tilt.md"
DIAL = "| tilt λ | promised |"  # how the first line of a table begins
RIVAL = "| LoRA weight | P(o=1) |"


def page() -> str:
    """The page as it should be: its text as it is, with these two numbers and the lines of these tables made anew."""
    pipelines = {name.partition(",")[0] for name in CASES}
    counts = f"{len(pipelines)} pipeline classes over {len(FAMILIES)} families"
    text = re.sub(r"\d+ pipeline classes over \d+ families", counts, PAGE.read_text(encoding="utf-8"))
    dial, rival = tables(MEASURED.read_text(encoding="utf-8"))
    return with_rows(with_rows(text, DIAL, dial), RIVAL, rival)


def tables(measured: str) -> tuple[list[list[str]], list[list[str]]]:
    """The rows of the dial's table and of the rival's, from the page of tests/benchmarks/tilt.py."""
    calibrated, two_passes, _one_pass = (
        rows_of(measured, start) for start in all_starts(measured, "| law | tilt | promised |")
    )
    laws = {(row[0], row[1]): row for row in (*calibrated, *two_passes)}
    dial = []
    for _, tilt, promised, liked, _, quality, _, rival in calibrated:
        odds, nft = laws["odds", tilt], laws["nft", tilt]
        shares = [f"{float(share):.2f}" for share in (promised, liked, odds[3], nft[3])]
        dial.append([tilt, *shares, quality, odds[5], rival])
    (start,) = all_starts(measured, "| LoRA weight | measured P(o=1) |")
    return dial, [[weight, f"{float(liked):.2f}", quality] for weight, liked, quality in rows_of(measured, start)]


def all_starts(text: str, beginning: str) -> list[int]:
    """Where the tables begin whose first line begins so."""
    return [found.start() for found in re.finditer(re.escape(beginning), text)]


def rows_of(text: str, start: int) -> list[list[str]]:
    """The cells of the table that begins there, without its head."""
    lines = text[start:].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def with_rows(text: str, beginning: str, rows: Sequence[Sequence[str]]) -> str:
    """The text with other rows in the table whose first line begins so."""
    (start,) = all_starts(text, beginning)
    old, rest = text[start:].split("\n\n", 1)
    head = old.splitlines()[:2]
    return text[:start] + "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n\n" + rest


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
