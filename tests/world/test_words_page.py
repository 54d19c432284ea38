"""The page that tests/benchmarks/words.py adds to, a training run at a time: what it says of other runs stays."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.words import CURVE_HEAD, DOCS, HEAD, LEARNED_TITLE, learned, points_of, rows_on

PAGE = (Path(DOCS) / "measured/words.md").read_text(encoding="utf-8")
N = int(re.findall(r"\((\d+) pictures per row", PAGE)[0])


def test_nothing_new_leaves_the_page_as_it_is() -> None:
    before, title, after = PAGE.partition(LEARNED_TITLE)
    assert before + learned(title + after, [], [], N) == PAGE


def test_a_run_is_added_beside_those_that_are_there_and_takes_its_own_place_again() -> None:
    curve = ["another, seed 7", "raw", "none", "96,768", "0: 0.760, 5,376: 0.800"]
    drawn = ["another, seed 7, strength 1", "1", "0.600 ± 0.026", "0.800", "0.300"]
    once = learned(PAGE, [curve], [drawn], N)
    for head, row in ((CURVE_HEAD, curve), (HEAD, drawn)):
        there = rows_on(PAGE, head)
        assert len(there) > 1 and rows_on(once, head) == {**there, row[0]: row}
    again = [*curve[:-1], "0: 0.760, 5,376: 0.900"]
    assert points_of(rows_on(learned(once, [again], [], N), CURVE_HEAD)[again[0]]) == ([0, 5376], [0.76, 0.9])
