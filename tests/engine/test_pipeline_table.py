"""docs/measured/pipelines.md has every pipeline class of diffusers, none that is gone, and none that is wrong."""

from __future__ import annotations

import diffusers
import pytest

from helpers import pipeline_table
from helpers.pipeline_classes import pipeline_names, refusal_by_signature
from helpers.pipeline_results import VERDICTS, rows, version
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


@of_this_version
def test_what_a_signature_tells_is_on_the_page() -> None:
    for name, verdict in rows().items():
        by_signature = refusal_by_signature(name)
        assert by_signature is None or by_signature["verdict"] == verdict, name


def test_a_wrong_class_is_called_wrong() -> None:
    right = {"at 0": 0.0, "at 1": 1e-6, "batched": "is refused", "effect": 0.5}
    assert pipeline_table.judged({"CFG": right})["verdict"] == "right"
    for what, error in {"at 0": 1e-9, "at 1": 0.01, "batched": 0.01}.items():
        assert pipeline_table.judged({"CFG": right, "without CFG": {**right, what: error}})["verdict"] == "wrong"
    assert pipeline_table.judged({"CFG": {**right, "effect": 0.0}})["verdict"] == "not buildable"
    assert pipeline_table.judged({"CFG": {**right, "at 1": "why"}}) == {"verdict": "refused", "why": "why"}
