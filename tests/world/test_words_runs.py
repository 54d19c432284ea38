"""What tests/benchmarks/words.py compares: runs of one budget, and rows that the page keeps."""

from __future__ import annotations

import pytest
from benchmarks.words import DOCS, LEARNED_TITLE, OBJECTIVES, forwards_of, pictures_of, points_of, rows_on, settings_of


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_draws_as_many_pictures_and_learns_from_as_many_pairs(name: str) -> None:
    config, policy = settings_of(name, seed=3), settings_of("policy", seed=0)
    assert config.kind == name and config.seed == 3
    assert pictures_of(config) == pictures_of(policy) == 5376
    assert config.total_steps * config.batch == policy.total_steps * policy.batch == 10752
    assert forwards_of(config) == 5376 * 14 + 10752 * (3 if name == "policy" else 2)  # the anchor is a forward more


def test_the_page_keeps_the_rows_of_runs_that_are_not_given() -> None:
    page = (DOCS / "measured/words.md").read_text(encoding="utf-8")
    rows = rows_on(page)
    seen, rewards = points_of(rows["policy, seed 0"])
    assert seen == [0, 2304, 4608, 5376] and 0.7 < rewards[0] < 0.8 < rewards[-1] < 1
    assert rows_on(page.partition(LEARNED_TITLE)[0]) == {}
