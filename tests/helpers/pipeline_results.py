"""docs/measured/pipelines.md, written from what helpers/pipeline_table.py measured, and read again."""

from __future__ import annotations

import importlib.metadata
import json
import re
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from helpers.repository import ROOT

PAGE = ROOT / "docs" / "measured" / "pipelines.md"
WHOLE = ("at 0", "at 1", "batched", "rows", "alone", "neighbours", "effect")
VERDICTS = {
    "right": "are right",
    "refused": "are refused by name",
    "no denoising": "do no denoising",
    "not buildable": "could not be built",
    "not tried": "have not been tried yet",
}
_HEAD = """# Every pipeline class

Made by `python -m helpers.pipeline_table` in tests/ with diffusers {version}: a row for each of the {count} pipeline
classes that diffusers exports ([modular pipelines](../modular.md) have a guider instead). Each is a tiny random model
in its real class, called with two steps on a CPU in fp32. It is built as this repository's tests build it ("ours"), as
diffusers' own test of the class does ("theirs"), of the parts of the tests of classes with like names ("siblings"), or
by tests/helpers/by_hand.py ("by hand").

- **right**: every property below holds. A cell that says "refused" is a combination that raises an error saying why.
- **refused**: loading an adapter, or any guided call, raises an error that says why.
- **no denoising**: the class has no scheduler, so there is nothing to guide.
- **not buildable**: nobody could try, and what guidance does there is not known; why is said.
- **not tried**: the command has not come to it yet.

A number is the largest difference as a share of the largest value, over the calls with and without classifier-free
guidance:

- at 0: strength 0 against the stock pipeline, bit for bit;
- at 1: a policy adapter's strength just below 1, in two passes, against its strength 1, in one, and that against the
  stock pipeline with the LoRA on;
- batched: the mode "batched" against "two_pass";
- rows: strengths 0.25 and 0.5 in one batch against calls of their own;
- alone: a sample in a batch against a call of its own;
- neighbours: how far a positive adapter's alpha of a sample differs with who is beside it;
- effect: how much the LoRA does, without which the others would say nothing.

A dash is where a call takes one sample, or where the stock pipeline itself mixes the samples of a batch. The bound is
{bound:.0e}, or a thousandth of the effect where that is more: some pipelines enlarge rounding.

"""


def written(results: dict[str, dict[str, Any]], bound: float) -> str:
    """The page, of the results by class name."""
    lines = [
        _HEAD.format(version=importlib.metadata.version("diffusers"), count=len(results), bound=bound),
        f"| class | verdict | built | {' | '.join(WHOLE)} |\n",
        f"|---|---|---|{'---|' * len(WHOLE)}\n",
    ]
    reasons: dict[str, int] = {}
    for name, result in results.items():
        cells = result.get("cells") or [_cell(result.get("measured", {}), what) for what in WHOLE]
        verdict = result["verdict"]
        if "why" in result:
            said = _plain(name, result["why"])
            said = textwrap.shorten(said, 160) if verdict == "not buildable" else said
            verdict += f" ({reasons.setdefault(said, len(reasons) + 1)})"
        lines.append(f"| {name} | {verdict} | {result.get('source', '')} | {' | '.join(cells)} |\n")
    lines.append("\n## Why\n\n")
    lines += [f"{number}. {said}\n" for said, number in reasons.items()]
    return "".join(lines)


def counts() -> str:
    """The sentence on docs/pipelines.md that counts the page's rows by verdict."""
    by_verdict = Counter(rows().values())
    said = ", ".join(f"{by_verdict[verdict]} {words}" for verdict, words in VERDICTS.items() if by_verdict[verdict])
    whole = f"Of the {sum(by_verdict.values())} pipeline classes that diffusers {version()} exports, {said}."
    return textwrap.fill(whole, 120) + "\n"


def rows() -> dict[str, str]:
    """The verdict on each class, as the page has it."""
    found = re.findall(r"^\| (\w+) \| ([a-z ]+?)(?: \(\d+\))? \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: verdict for name, verdict in found if name != "class"}


def version() -> str:
    """diffusers' version that the page was made with."""
    (found,) = re.findall(r"with diffusers ([\d.]+):", PAGE.read_text(encoding="utf-8"))
    return str(found)


def on_page() -> dict[str, dict[str, Any]]:
    """What the page says of each class, as `written` takes it."""
    table, _, reasons = PAGE.read_text(encoding="utf-8").partition("\n## Why\n")
    why = dict(re.findall(r"^(\d+)\. (.*)$", reasons, re.MULTILINE))
    results: dict[str, dict[str, Any]] = {}
    for line in table.splitlines():
        name, verdict, source, *cells = [cell.strip() for cell in line.strip("|").split("|")] + [""] * 3
        if line.startswith("| ") and name != "class":
            plain, _, number = verdict.removesuffix(")").partition(" (")
            reason = {"why": why[number]} if number else {}
            results[name] = {"verdict": plain, "source": source, "cells": cells[: len(WHOLE)], **reason}
    return results


def results_in(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """What is in the cache, by class name; what is not there is as on the page, if that is of the same diffusers."""
    before = on_page() if version() == importlib.metadata.version("diffusers") else {}
    results = {}
    for name in names:
        file = folder / f"{name}.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else before.get(name)
        results[name] = known or {"verdict": "not tried"}
    return results


def _cell(measured: dict[str, dict[str, Any]], what: str) -> str:
    values = [each[what] for each in measured.values() if what in each]
    numbers = [value for value in values if not isinstance(value, str)]
    if not values:
        return "–" if measured else ""
    largest = f"{max(numbers):.0e}" if numbers and max(numbers) else "0" if numbers else ""
    return " / ".join([*([largest] if numbers else []), *(["refused"] if len(numbers) < len(values) else [])])


def _plain(name: str, why: str) -> str:
    """A reason on one line, the same for all classes that it is said of."""
    said = " ".join(re.sub(rf"\b{name}\b", "the class", why).split())
    return re.sub(r"[`|]", "", said)
