"""run_report.json: what goes in comes out, and each fault is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers.cards import full_report
from nft_pipeline.adapter import AdapterError
from nft_pipeline.hub_cards.report import Alpha, RunReport, read_report


def changed(**fields: Any) -> bytes:
    return json.dumps(json.loads(full_report().to_json()) | fields).encode()


def test_it_comes_back_as_it_was() -> None:
    report = full_report()
    assert RunReport.from_json(report.to_json()) == report
    assert RunReport.from_json('{"format_version": 1}') == RunReport()


def test_points_are_put_in_order() -> None:
    points = [{"strength": s, "mean": 0.1, "n": 3} for s in (2, 0, 1)]
    report = RunReport.from_json(changed(rewards=[{"name": "red", "trained": True, "points": points}]))
    assert [point.strength for point in report.rewards[0].points] == [0, 1, 2]
    assert report.rewards[0].at(1) is not None and report.rewards[0].at(1.5) is None


def test_alpha_falls_back_on_what_the_trainer_always_wrote() -> None:
    entry = {"noise_level": 0.2, "auc": 0.9, "error": 0.02, "n": 10}
    assert read_report(None, {"alpha_held_out": [entry]}).alpha == (Alpha(**entry),)
    assert read_report(None, {"alpha_held_out": [{**entry, "auc": "good"}]}).alpha == ()
    assert read_report(full_report().to_json().encode(), {"alpha_held_out": [entry]}).alpha == full_report().alpha


@pytest.mark.parametrize(
    ("fields", "phrase"),
    [
        (
            {"format_version": 2},
            "format_version is 2, this version .* reads 1: the file was made by a newer version; update",
        ),
        ({"format_version": "1"}, "format_version is '1', expected the whole number 1"),
        ({"reward": []}, "reward is unknown; did you mean rewards?"),
        ({"rewards": {}}, "rewards is '{}', expected a list"),
        ({"rewards": [3]}, r"rewards\[0\] is '3', expected an object"),
        ({"rewards": [{"name": "x", "trained": 1, "points": [1]}]}, r"rewards\[0\].trained is '1', expected true or"),
        (
            {"rewards": [{"name": "x", "trained": True, "points": []}]},
            "points is .*, expected a list that is",
        ),
        (
            {"rewards": [{"name": "x", "trained": True, "points": [{"strength": 0, "mean": 1, "n": 0}]}]},
            r"points\[0\].n is '0', expected a whole number from 1",
        ),
        ({"alpha": [{"noise_level": 2, "auc": 0.5, "error": 0, "n": 1}]}, r"alpha\[0\].noise_level is '2', expected"),
        (
            {"samples": [{"file": "../../secret.png", "prompt": "x", "seed": 0, "strength": 1}]},
            "file is '../../secret.png', expected a picture inside the folder",
        ),
        ({"hacking": {"verdict": "no", "reason": "x"}}, "verdict is 'no', expected one of none seen, suspected, seen"),
        ({"strength_range": [2, 1]}, r"strength_range is '\[2, 1\]', expected two rising numbers"),
        ({"trained": {"hour": 1}}, "trained.hour is unknown; did you mean hours"),
    ],
)
def test_a_fault_is_named(fields: dict[str, Any], phrase: str) -> None:
    with pytest.raises(AdapterError, match=phrase) as caught:
        RunReport.from_json(changed(**fields))
    assert "run_report.json" in str(caught.value)
