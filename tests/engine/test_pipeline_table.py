"""docs/measured/pipelines.md has every pipeline class of diffusers, none that is gone, and none that is wrong."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest

from helpers import pipeline_table
from helpers.by_hand import BY_HAND
from helpers.pipeline_classes import pipeline_names, refusal_by_signature
from helpers.pipeline_results import PAGE, VERDICTS, results_in, rows, version, written
from helpers.zoo import CASES, GENERIC, SIBLINGS

of_this_version = pytest.mark.skipif(
    diffusers.__version__ != version(), reason=f"the page is of diffusers {version()}, here is {diffusers.__version__}"
)


@of_this_version
def test_the_page_has_every_class_and_no_other() -> None:
    assert list(rows()) == pipeline_names()


def test_no_class_is_wrong() -> None:
    assert set(rows().values()) <= set(VERDICTS)


def test_what_the_suite_measures_is_right_on_the_page() -> None:
    measured = {name.partition(",")[0] for name in {**CASES, **SIBLINGS, **GENERIC}}
    assert len(measured) >= 60
    assert {name for name in measured if rows()[name] != "right"} == set()


def test_what_is_built_by_hand_is_right_or_refused_on_the_page() -> None:
    assert {rows()[name] for name in BY_HAND} == {"right", "refused"}


@of_this_version
def test_what_a_signature_tells_is_on_the_page() -> None:
    for name, verdict in rows().items():
        by_signature = refusal_by_signature(name)
        assert by_signature is None or by_signature["verdict"] == verdict, name


@of_this_version
def test_rows_that_are_not_measured_anew_stay_as_they_are(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written(results_in(tmp_path, pipeline_names()), pipeline_table.BOUND) == page
    (tmp_path / "FluxPipeline.json").write_text('{"verdict": "wrong", "why": "FluxPipeline breaks"}', encoding="utf-8")
    changed = written(results_in(tmp_path, pipeline_names()), pipeline_table.BOUND).splitlines()
    others = [line.partition("(")[0] for line in changed if "| FluxPipeline |" not in line and line.startswith("| ")]
    assert all(line in page for line in others) and len(others) == len(pipeline_names())
    assert any(line.endswith("the class breaks") for line in changed)


def test_a_wrong_class_is_called_wrong() -> None:
    right = {"at 0": 0.0, "at 1": 1e-6, "batched": "is refused", "effect": 0.5}
    assert pipeline_table.judged({"CFG": right})["verdict"] == "right"
    for what, error in {"at 0": 1e-9, "at 1": 0.01, "batched": 0.01}.items():
        assert pipeline_table.judged({"CFG": right, "without CFG": {**right, what: error}})["verdict"] == "wrong"
    assert pipeline_table.judged({"CFG": {**right, "effect": 0.0}})["verdict"] == "not buildable"
    assert pipeline_table.judged({"CFG": {**right, "at 1": "why"}}) == {"verdict": "refused", "why": "why"}
