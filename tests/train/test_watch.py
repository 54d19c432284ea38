"""The hacking watch and the choice of a strength, on planted numbers: what was put in has to come out, in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nft_pipeline.training.show import picture_stats
from nft_pipeline.training.show.run_report import run_report
from nft_pipeline.training.show.sweep import (
    GROUP,
    STATISTICS,
    Estimate,
    Sweep,
    SweepPoint,
    estimate,
    log_odds_shift,
    sweep_rows,
)
from nft_pipeline.training.show.watch import choose_strength, hacking_verdict

STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)
BASE = {"edge density": 0.2, "colour entropy": 2.0, "brightness": 0.5, "diversity": 0.3, "distance to base": 0.0}
STEADY = {name: [BASE[name]] * 5 for name in STATISTICS}


def sweep(watched: bool = True, error: float = 0.01, goal: str | None = "ocr", **curves: Any) -> Sweep:
    """A reward that rises with strength, everything else level, but for the curves given."""
    table = {"ocr": [0.3, 0.5, 0.7, 0.8, 0.805], "aesthetic": [5.0] * 5, **STEADY}
    table |= {name.replace("_", " "): values for name, values in curves.items()}
    points = tuple(
        SweepPoint(
            strength,
            {name: Estimate(values[i], error, 100) for name, values in table.items()},
            {name: Estimate(values[i] - values[0], error if i else 0.0, 100) for name, values in table.items()},
        )
        for i, strength in enumerate(STRENGTHS)
    )
    return Sweep(points, ("ocr",) if goal else (), goal, "aesthetic" if watched else None, "100 held-out prompts")


def test_the_shift_of_log_odds_is_the_tilt_of_rewards_of_zero_and_one() -> None:
    rng, prompts = np.random.default_rng(0), np.repeat(np.arange(100), 20)
    moved = []
    for _ in range(40):
        noise = rng.random(2000)  # the same at both strengths, as in a sweep
        before, after = noise < 0.3, noise < 0.3 * np.e**1.5 / (0.7 + 0.3 * np.e**1.5)
        shift = log_odds_shift(before.astype(float), after.astype(float), prompts)
        assert shift is not None and shift.n == 2000 and shift.is_sure
        moved.append((shift.log_odds, shift.error))
    values, errors = np.array(moved).T
    assert values.mean() == pytest.approx(1.5, abs=0.03)
    assert errors.mean() == pytest.approx(values.std(), rel=0.35)


def test_a_shift_is_not_told_from_scores_that_are_not_near_zero_and_one() -> None:
    prompts, liked = np.arange(40), np.arange(40) % 2.0
    assert log_odds_shift(0.5 + 0.1 * liked, 0.6 + 0.1 * liked, prompts) is None  # graded
    assert log_odds_shift(2 * liked, 2 * liked, prompts) is None  # out of [0, 1]
    assert log_odds_shift(np.zeros(40), np.zeros(40), prompts) is None
    none_moved = log_odds_shift(liked, liked, prompts)
    assert none_moved is not None and none_moved.log_odds == 0 and not none_moved.is_sure
    all_liked = log_odds_shift(liked, np.ones(40), prompts)
    assert all_liked is not None and np.isfinite(all_liked.log_odds)


def test_a_reward_that_rises_alone_is_no_hack() -> None:
    verdict = hacking_verdict(sweep())
    assert verdict is not None and verdict.verdict == "none seen"
    assert "ocr rises (+0.505 ± 0.01 at strength 2), and detail, colours, light and variety hold" in verdict.reason
    assert "aesthetic, not trained on, changes by +0 ± 0.01 at worst" in verdict.reason


@pytest.mark.parametrize(
    ("planted", "verdict", "words"),
    [
        (
            {"aesthetic": [5, 5, 5, 4.9, 4.5]},
            "suspected",
            "strength 1.5 on ocr rises (+0.5 ± 0.01) while aesthetic",
        ),
        ({"diversity": [0.3, 0.3, 0.3, 0.2, 0.1]}, "suspected", "while diversity falls by 33%"),
        ({"edge_density": [0.2, 0.1, 0.1, 0.1, 0.1]}, "suspected", "from strength 0.5 on"),
        ({"colour_entropy": [2, 2, 1, 1, 1]}, "suspected", "colour entropy falls by 50%"),
        ({"brightness": [0.5, 0.5, 0.5, 0.8, 0.9]}, "suspected", "brightness rises by 60%"),
        ({"distance_to_base": [0, 0.1, 0.2, 0.25, 0.35]}, "suspected", "further from the base model's with the same"),
        (
            {"aesthetic": [5, 5, 5, 4.9, 4.5], "diversity": [0.3, 0.3, 0.3, 0.3, 0.1]},
            "seen",
            "from strength 2 on ocr rises (+0.505 ± 0.01) while aesthetic falls (-0.5 ± 0.01), diversity falls by 67%",
        ),
        ({"ocr": [0.3] * 5, "diversity": [0.3, 0.2, 0.1, 0.1, 0.1]}, "none seen", "ocr does not surely rise at any"),
    ],
)
def test_planted_tricks_are_named(planted: dict[str, list[float]], verdict: str, words: str) -> None:
    found = hacking_verdict(sweep(**planted))
    assert found is not None and found.verdict == verdict
    assert words in found.reason


def test_a_fall_within_the_noise_is_none() -> None:
    found = hacking_verdict(sweep(error=0.1, aesthetic=[5, 5, 4.9, 4.85, 4.8], ocr=[0.1, 0.2, 0.4, 0.5, 0.9]))
    assert found is not None and found.verdict == "none seen"


def test_without_a_reward_there_is_no_verdict_and_no_choice() -> None:
    assert hacking_verdict(sweep(goal=None)) is None
    assert choose_strength(sweep(goal=None)).strength == 1.0


def test_what_did_not_rise_is_told_from_what_rose_at_a_cost() -> None:
    assert "ocr does not surely rise at any strength" in choose_strength(sweep(ocr=[0.3] * 5)).reason
    assert "without something falling" in choose_strength(sweep(aesthetic=[5, 4, 3, 2, 1])).reason


@pytest.mark.parametrize(
    ("planted", "strength", "span"),
    [
        ({}, 1.5, (0.5, 2.0)),  # 0.8 is within an error of 0.805
        ({"ocr": [0.3, 0.5, 0.7, 0.8, 0.9]}, 2.0, (0.5, 2.0)),
        ({"aesthetic": [5, 5, 5, 4.9, 4.5]}, 1.0, (0.5, 1.0)),
        ({"diversity": [0.3, 0.3, 0.1, 0.1, 0.1]}, 1.5, (0.5, 2.0)),  # one statistic may be what was asked for
        ({"diversity": [0.3, 0.3, 0.1, 0.1, 0.1], "edge_density": [0.2, 0.2, 0.1, 0.1, 0.1]}, 0.5, None),
        ({"aesthetic": [5, 4, 3, 2, 1]}, 0.25, None),
        ({"ocr": [0.3] * 5}, 1.0, None),
    ],
)
def test_the_strength_is_the_smallest_that_is_as_good_as_the_best_trusted_one(
    planted: dict[str, list[float]], strength: float, span: tuple[float, float] | None
) -> None:
    choice = choose_strength(sweep(**planted))
    assert (choice.strength, choice.span) == (strength, span) and choice.reason


def test_the_report_has_it_all() -> None:
    from nft_pipeline.hub_cards.report import RunReport, Trained

    report = run_report(None, Trained(hours=0.1), (), sweep())  # type: ignore[arg-type]
    assert RunReport.from_json(report.to_json()) == report
    assert [(curve.name, curve.trained) for curve in report.rewards] == [("ocr", True), ("aesthetic", False)]
    assert report.strength_range == (0.5, 2.0) and report.hacking is not None
    point = report.rewards[0].at(1)
    assert point is not None and (point.mean, point.spread, point.n) == (0.7, 0.01, 100)


def test_errors_are_over_prompts_where_there_are_enough() -> None:
    groups = np.repeat(np.arange(10), 4)
    prompt_alone = np.repeat(np.arange(10.0), 4)  # pictures of a prompt are all alike: ten numbers, not forty
    found = estimate(prompt_alone, groups)
    assert (found.mean, found.n) == (4.5, 40)
    assert found.error == pytest.approx(np.arange(10.0).std(ddof=1) / 10**0.5)
    few = estimate(prompt_alone[:8], groups[:8])
    assert few.error == pytest.approx(prompt_alone[:8].std(ddof=1) / 8**0.5)
    assert estimate(np.array([1.0, np.nan]), np.array([0, 1])).n == 1


@pytest.mark.parametrize(("prompts", "size"), [(100, 32), (3, 8), (1, 5), (2, 1)])
def test_a_sweep_spreads_over_prompts_in_groups(prompts: int, size: int) -> None:
    rows = sweep_rows(prompts, size)
    assert len(rows) == size and len({seed for _, seed in rows}) == size
    counts = np.bincount([prompt for prompt, _ in rows], minlength=prompts)
    assert (counts > 0).sum() == min(prompts, max(1, size // GROUP)) and counts.max() - counts[
        counts > 0
    ].min() <= GROUP


def flat(*colours: int) -> np.ndarray:
    return np.stack([np.full((8, 8, 3), colour, dtype=np.uint8) for colour in colours])


def test_statistics_of_pictures_whose_numbers_are_known() -> None:
    pictures = picture_stats.shrunk(np.concatenate([flat(0, 255), flat(0)]))
    pictures[2, :, 4:] = 1.0  # half black, half white
    assert picture_stats.brightness(pictures) == pytest.approx([0, 1, 0.5])
    assert picture_stats.colour_entropy(pictures) == pytest.approx([0, 0, 1])
    assert picture_stats.edge_density(pictures) == pytest.approx([0, 0, 8 / 112])
    assert picture_stats.distance(pictures[:1], pictures[1:2]) == pytest.approx([1])
    assert picture_stats.diversity(pictures, np.array([0, 0, 1]))[:2] == pytest.approx([1, 1])
    assert np.isnan(picture_stats.diversity(pictures, np.array([0, 0, 1]))[2])


def test_large_pictures_are_shrunk_and_small_ones_are_not() -> None:
    assert picture_stats.shrunk(np.zeros((1, 128, 256, 3), dtype=np.uint8)).shape == (1, 32, 64, 3)
    assert picture_stats.shrunk(flat(7)).shape == (1, 8, 8, 3)
