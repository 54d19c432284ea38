"""What tests/benchmarks/words.py compares: runs of one budget, and rows that the page keeps."""

from __future__ import annotations

import re

import pytest
from benchmarks.words import (
    CURVE_HEAD,
    DOCS,
    HEAD,
    LEARNED_TITLE,
    OBJECTIVES,
    SEEDS_HEAD,
    forwards_of,
    learned,
    over_seeds,
    pictures_of,
    points_of,
    rows_on,
    run_of,
    settings_of,
)

PAGE = (DOCS / "measured/words.md").read_text(encoding="utf-8")
N = int(re.findall(r"\((\d+) pictures per row", PAGE)[0])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_draws_as_many_pictures_and_learns_from_as_many_pairs(name: str) -> None:
    config, policy = settings_of(name, seed=3), settings_of("policy", seed=0)
    assert config.kind == name and config.seed == 3
    assert pictures_of(config) == pictures_of(policy) == 5376
    assert config.total_steps * config.batch == policy.total_steps * policy.batch == 10752
    assert forwards_of(config) == 5376 * 14 + 10752 * (3 if name == "policy" else 2)  # the anchor is a forward more


def test_the_page_keeps_the_rows_of_runs_that_are_not_given() -> None:
    before, title, after = PAGE.partition(LEARNED_TITLE)
    assert before + learned(title + after, [], [], N) == PAGE
    seen, rewards = points_of(rows_on(PAGE, CURVE_HEAD)["policy, seed 0"])
    assert seen == [0, 2304, 4608, 5376] and 0.7 < rewards[0] < 0.8 < rewards[-1] < 1
    assert rows_on(before, CURVE_HEAD) == rows_on(before, HEAD) == {}


def test_a_run_is_added_beside_those_that_are_there() -> None:
    curve = ["another, seed 7", "raw", "none", "96,768", "0: 0.760, 5,376: 0.800"]
    drawn = ["another, seed 7, strength 1", "1", "0.600 ± 0.026", "0.800", "0.300"]
    once = learned(PAGE, [curve], [drawn], N)
    assert list(rows_on(once, CURVE_HEAD)) == sorted(rows_on(once, CURVE_HEAD), key=run_of)
    for head, row in ((CURVE_HEAD, curve), (HEAD, drawn)):
        there = rows_on(PAGE, head)
        assert len(there) > 1 and rows_on(once, head) == {**there, row[0]: row}
    mean = ["another, strength 1", "1", "0.600", "0.800", "0.300"]
    assert rows_on(once, SEEDS_HEAD)[mean[0]] == mean


def test_seeds_of_one_way_become_one_row() -> None:
    rows = [[f"paper, seed {seed}, strength 1", "1", f"{0.7 + seed / 10:.3f} ± 0.020", "0.9", "0.3"] for seed in (0, 2)]
    rows.append(["paper, seed 0, strength 0, early choice", "1.5", "0.450 ± 0.030", "0.8", "0.3"])
    assert over_seeds(rows) == [
        ["paper, strength 0, early choice", "1", "0.450", "0.800", "0.300"],
        ["paper, strength 1", "2", "0.800 (0.700 to 0.900)", "0.900 (0.900 to 0.900)", "0.300 (0.300 to 0.300)"],
    ]


def test_a_run_s_row_takes_its_own_place_again() -> None:
    curve = ["another, seed 7", "raw", "none", "96,768", "0: 0.760, 5,376: 0.800"]
    once = learned(PAGE, [curve], [], N)
    again = [*curve[:-1], "0: 0.760, 5,376: 0.900"]
    assert points_of(rows_on(learned(once, [again], [], N), CURVE_HEAD)[again[0]]) == ([0, 5376], [0.76, 0.9])
