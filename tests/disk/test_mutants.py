"""300 adapters that something happened to: each reader ends in a named error, the same numbers, or a legal file."""

from __future__ import annotations

from helpers.mutants import KINDS, run


def test_300_mutants_end_in_a_named_error_the_same_numbers_or_a_legal_file() -> None:
    table, failures = run(300, seed=1)
    assert not failures, "\n".join(failures)
    assert sum(times for (reader, _), times in table.items() if reader == "verify") == 300
    assert table["API", "named"] > 100 and table["API", "same"] > 10 and table["ComfyUI", "named"] > 50
    assert len(KINDS) > 10
