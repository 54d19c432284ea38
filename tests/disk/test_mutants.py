"""300 adapters that something happened to: each reader ends in a named error, the same numbers, or a legal file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import mutants
from helpers.mutants import KINDS, Mutant, all_judged, failures, judged, table


def test_300_mutants_end_in_a_named_error_the_same_numbers_or_a_legal_file() -> None:
    found = list(judged(range(300), seed=1))
    assert not failures(found), "\n".join(failures(found))
    counts = Counter((reader, result) for mutant in found for reader, result in mutant.results.items())
    assert counts["API", "named"] > 100 and counts["API", "same"] > 10 and counts["ComfyUI", "named"] > 50
    assert len(KINDS) > 10 and {mutant.kind for mutant in found} == set(KINDS)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its judges, which this system cannot")
def test_what_ends_a_process_is_a_failure_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fine = {"API": "named", "ComfyUI": "same", "verify": "faults"}

    def deadly(which: range, seed: int) -> Iterator[Mutant]:
        for number in which:
            if number == 1:
                os._exit(7)
            yield Mutant(number, "x", fine)

    monkeypatch.setattr(mutants, "judged", deadly)
    found = all_judged(3, 0, tmp_path / "mutants.jsonl")
    assert [mutant.number for mutant in found] == [0, 1, 2]
    assert failures(found) == ["mutant 1, , process: failure: it ended with 7"]
    assert "| `read_adapter` | 2 | 0 | 0 | 0 | 1 |" in table(found)
