"""Words: a rate is written with "per", as in "one value per sample"."""

from __future__ import annotations

import re

from helpers.repository import ROOT, repository_files

NOUNS = r"backwards?|entry|forwards?|losses|loss|number|passes|pictures|prompts|scale|score|steps|value"
# "one picture" and then an article, unless what stands between is a verb or a preposition.
RATE = re.compile(
    rf"\b(?:one\s+(?:\w+\s+)?(?!(?:draws|in|needs)\b)\w+|{NOUNS})\s+an?\s+(?:line|picture|prompt|round|row|sample|step|strength)\b"
)


def test_a_rate_says_per() -> None:
    faults = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in repository_files()
        if path.suffix in {".py", ".md", ".jinja", ".yaml"}
        for match in RATE.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not faults, 'write "per" instead of the article:\n' + "\n".join(faults)


def test_one_without_it_would_be_noticed() -> None:
    article = "a"
    assert RATE.search(f"one value {article} sample") and RATE.search(f"2 forwards + 1 backward {article} sample")
    assert not RATE.search("one value per sample") and not RATE.search("one queue draws a picture for each")
