"""What a run's page says of the dial."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.adapters import config_values
from helpers.dials import measured_dial, unlearned_dial
from helpers.tiny_run import config as settings
from nft_pipeline.adapter import AdapterConfig
from nft_pipeline.hub_cards.report import RunReport
from nft_pipeline.training.dial.calibrate import Calibrated
from nft_pipeline.training.show.dial_words import alpha_words, dial_words
from nft_pipeline.training.show.page import write_page
from nft_pipeline.training.show.watch import Choice

FLAT = ((1.0, 0.31), (0.5, 0.28), (0.1, 0.33))


def calibrated(**changed: Any) -> Calibrated:
    found = Calibrated(measured_dial(), True, "one pass, at one weight for all, as LoRA weight is", FLAT, 9000)
    return replace(found, **changed)


def page(tmp_path: Path, found: Calibrated | None) -> str:
    adapter = AdapterConfig.from_dict(config_values())
    words = None if found is None else dial_words(replace(adapter, dial=found.dial), found)
    choice = Choice(1.0, None, "it is best")
    return write_page(tmp_path, settings(), RunReport(), {}, choice=choice, dial=words).read_text()


def test_it_has_the_table_the_reach_the_judge_and_the_reason(tmp_path: Path) -> None:
    text = page(tmp_path, calibrated())
    assert "<h2>What a setting does</h2>" in text and "Recommended strength: <b>1</b>: it is best" in text
    assert "<th>-1</th>" in text and "<td>70% ± 2.0%</td>" in text and "<td>92% ± 1.0%</td>" in text
    assert "The adapter reaches 92% at strength 2.5" in text and "Without guidance 30% ± 1.2% are liked" in text
    assert "Judged by the reward &#39;red&#39;" in text
    assert "unless a mode is asked for: one pass, at one weight for all, as LoRA weight is." in text
    assert "the head keeps to it." in text


def test_what_was_not_learned_is_not_recommended(tmp_path: Path) -> None:
    dial = unlearned_dial()
    text = page(tmp_path, calibrated(dial=dial, learned=False, reason=dial.note))
    assert "Not learnable from these likes." in text and "Recommended" not in text
    assert "promised share" not in text and "no weight surely raises" in text


def test_without_a_calibration_it_says_so(tmp_path: Path) -> None:
    text = page(tmp_path, None)
    assert "Not calibrated, so nothing is known" in text and "Recommended strength: <b>1</b>" in text


@pytest.mark.parametrize(("worst", "off"), [(0.345, False), (0.36, True), (0.2, True)])
def test_the_mean_of_alpha_must_stay_at_the_base_rate(worst: float, off: bool) -> None:
    words, is_off = alpha_words(calibrated(mean_alphas=(*FLAT, (0.94, worst))))
    assert is_off is off
    assert ("at noise level 0.94: the head misjudges" in words) is off


def test_without_a_head_there_is_no_such_test() -> None:
    assert alpha_words(calibrated(mean_alphas=())) == ("", False)


@pytest.mark.parametrize(("judged_by", "words"), [("alpha", "its own alpha (me), since"), ("person", "me, from 1")])
def test_the_judge_is_said(judged_by: Any, words: str) -> None:
    found = calibrated(dial=measured_dial(judged_by=judged_by, judge="me"))
    assert dial_words(AdapterConfig.from_dict(config_values()), found).judged.startswith(words)
