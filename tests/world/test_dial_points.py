"""The points that tests/benchmarks/dial.py keeps, there and back, and the page that is made of them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.dial import DOCS, SEEDS, SIZES, Plan, is_trained, keep
from benchmarks.dial_cells import (
    APART,
    NOISE_SEED,
    TILTS,
    WEIGHTS,
    Cell,
    Setting,
    calibration_seed,
    digest_of,
    settings_after,
    settings_before,
    settings_of_weight,
    slug,
)
from benchmarks.dial_numbers import MEASURES, ByPrompt
from benchmarks.dial_points import POINTS, Kept, kept_path, kept_tastes, read_kept
from benchmarks.dial_report import page, rows_of, strength_1
from benchmarks.tastes import MEASUREMENT

from nft_pipeline.adapter import AdapterConfig, read_adapter
from nft_pipeline.models import shipped_adapter

N = 4 * MEASUREMENT  # pictures of a point in an adapter's own mode
CELL = Cell("everything is large", 40, 0)


@pytest.fixture(scope="module")
def adapter() -> Path:
    """A folder of an adapter that has a dial, in one pass with one weight for all and in two passes."""
    path = shipped_adapter("shapes-warm")
    assert path is not None
    return path


@pytest.fixture(scope="module")
def config(adapter: Path) -> AdapterConfig:
    return read_adapter(adapter).config


def settings_of(config: AdapterConfig) -> list[Setting]:
    """What is measured of an adapter without classifier-free guidance."""
    chosen = settings_before(N // 4, config.tilt, 1.0) + settings_of_weight(N // 2)
    return chosen + settings_after(config, N, N // 2, 1.0)


@pytest.fixture
def plan(tmp_path: Path, adapter: Path, config: AdapterConfig) -> Plan:
    """Work in which one adapter was measured and one was refused."""
    work, refused = tmp_path / "work", replace(CELL, seed=1)
    folder = CELL.folder(work)
    shutil.copytree(adapter, folder / "run" / "adapter")
    write(folder / "trained.json", {"seconds": 1.0})
    write(refused.folder(work) / "trained.json", {"refused": "hardly any is liked"})
    rng = np.random.default_rng(0)
    for setting in settings_of(config):
        point = {"adapter": digest_of(folder / "run" / "adapter", setting.kind), **picture_values(rng, setting.n)}
        write(folder / f"{setting.name}.json", point)
    write(work / "base" / slug(CELL.taste) / f"seed0_n{N}_cfg1.json", picture_values(rng, N))
    plan = Plan(work, tmp_path / "points", {CELL.taste: 0.3}, (), (CELL, refused), N)
    assert is_trained(folder) and not is_trained(refused.folder(work))
    return plan


def picture_values(rng: np.random.Generator, n: int) -> dict[str, list[float]]:
    """What is measured of n pictures."""
    liked, right = rng.integers(0, 2, (2, n)).tolist()
    return {"liked": liked, "right": right, "quality": rng.random(n).tolist(), "diversity": rng.random(n).tolist()}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def test_what_was_measured_is_kept_by_prompt_and_read_again(plan: Plan, config: AdapterConfig) -> None:
    keep(plan)
    kept = read_kept(kept_path(CELL, plan.points))
    assert (kept.cell, kept.config, kept.n) == (CELL, config, N)
    assert kept_tastes(plan.points) == plan.tastes
    assert [setting for setting, _ in kept.points] == plan.settings(CELL)
    for setting, values in kept.points:
        measured = json.loads((CELL.folder(plan.work) / f"{setting.name}.json").read_text())
        assert values["liked"].tolist() == np.reshape(measured["liked"], (-1, MEASUREMENT)).mean(0).tolist()
        for name in MEASURES:
            expected = np.reshape(measured[name], (-1, MEASUREMENT)).mean(0)
            assert values[name] == pytest.approx(expected, abs=5e-4)


def test_refused_ratings_are_kept_as_such_and_counted(plan: Plan) -> None:
    keep(plan)
    refused = read_kept(kept_path(plan.cells[1], plan.points))
    assert refused.config is None and refused.points == () and refused.base == {}
    text = page([read_kept(kept_path(cell, plan.points)) for cell in plan.cells], plan.tastes)
    assert "1 adapters of the shapes model were measured: 1 with seed 0." in text and "For 1 more" in text


def test_an_adapter_of_which_a_point_is_missing_is_not_kept(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    next(CELL.folder(plan.work).glob("weight*.json")).unlink()
    keep(plan)
    assert not kept_path(CELL, plan.points).exists()
    assert f"{CELL.taste}, 40, seed 0: not all of it is measured" in capsys.readouterr().out


def test_what_is_measured_later_stands_beside_what_is_there(plan: Plan) -> None:
    keep(plan)
    before = kept_path(CELL, plan.points).read_bytes()
    shutil.rmtree(CELL.folder(plan.work))
    keep(plan)
    assert kept_path(CELL, plan.points).read_bytes() == before


def lawful(config: AdapterConfig, seed: int = 0) -> Kept:
    """An adapter that does what it promises but at tilt 2 in its own mode, where it does more by .1."""
    p = np.random.default_rng(7).beta(2, 4, MEASUREMENT)

    def point(tilt: float, more: float = 0.0) -> ByPrompt:
        liked = p * np.exp(tilt) / (1 - p + p * np.exp(tilt)) + more
        return {"liked": liked, **{name: np.full(MEASUREMENT, 0.5) for name in MEASURES}}

    points = []
    for setting in settings_of(config):
        more = 0.1 if (setting.role, setting.asked) == ("own mode", 2) else 0.0
        points.append((setting, point(setting.value, more)))
    return Kept(replace(CELL, seed=seed), config, tuple(points), {1.0: point(0.0)}, 4096 * MEASUREMENT, "a CPU", "2026")


def test_the_page_finds_what_is_off_its_promise(config: AdapterConfig) -> None:
    measured = [lawful(config, seed) for seed in (0, 1)]
    off = {(row.cell.seed, row.group, row.setting.asked) for row in rows_of(measured) if not row.is_within}
    assert off == {(seed, "after, single, own mode", 2.0) for seed in (0, 1)}
    text = page(measured, {CELL.taste: 0.3})
    assert "after, single, own mode: 8 of 10 points are within the bar; 0.020 off in the mean, 0.100 at most." in text
    line = next(line for line in text.splitlines() if line.startswith("| 40 | everything is large |"))
    base, promised, liked = (float(cell) for cell in line.split(" | ")[2:5])
    assert liked - promised == pytest.approx(0.1, abs=2e-3) and base < promised
    assert line.endswith("| 0 of 2 |")
    assert "None of the calibrations says that nothing was learned." in text


def test_the_page_says_how_far_the_adapters_go_that_say_nothing_was_learned(config: AdapterConfig) -> None:
    assert config.dial is not None
    unsure = tuple(replace(one, errors=(0.5,) * len(one.errors)) for one in config.dial.maps)
    kept = lawful(replace(config, dial=replace(config.dial, maps=unsure)))
    rates = [point["liked"].mean() for setting, point in kept.points if setting.kind == "weight"]
    furthest = max(rates) - kept.base[1.0]["liked"].mean()
    text = page([kept], {CELL.taste: 0.3})
    assert "1 calibrations say that nothing was learned: 1 from 40 ratings." in text
    assert f"by {furthest:+.3f} in the mean and {furthest:+.3f} at most" in text
    assert furthest > 0.1


def test_strength_1_is_tilt_2_or_the_end(config: AdapterConfig) -> None:
    setting, _ = strength_1(lawful(config))
    assert setting.asked == 2 and setting.value == pytest.approx(min(2.0, config.dial.own.highest))


def test_the_committed_page_is_of_the_kept_points() -> None:
    """Its words exactly, its numbers but for what another processor rounds otherwise."""
    tastes = kept_tastes(POINTS)
    assert tastes is not None
    made = page([read_kept(path) for path in sorted(POINTS.glob("*/*.safetensors"))], tastes)
    there = (DOCS / "measured" / "dial.md").read_text(encoding="utf-8")
    number = re.compile(r"[-+]?\d+\.\d+")
    assert number.sub("#", there) == number.sub("#", made)
    values = [[float(found) for found in number.findall(text)] for text in (there, made)]
    assert values[0] == pytest.approx(values[1], abs=1.1e-3)


def test_all_kept_points_are_of_the_tastes_and_of_one_size() -> None:
    measured = [read_kept(path) for path in POINTS.glob("*/*.safetensors")]
    tastes = kept_tastes(POINTS)
    assert tastes is not None and len(tastes) == 6
    assert {kept.cell.taste for kept in measured} <= set(tastes)
    assert {kept.n for kept in measured if kept.config is not None} == {1024}
    for kept in measured:
        if kept.config is not None:
            weights = [setting.value for setting, _ in kept.points if setting.kind == "weight"]
            asked = [
                setting.asked for setting, _ in kept.points if (setting.role, setting.guidance_scale) == ("own mode", 1)
            ]
            assert (tuple(weights), tuple(asked)) == (WEIGHTS, TILTS)


def test_no_two_calibrations_of_the_table_share_noises_with_each_other_or_with_the_measurement() -> None:
    tastes = kept_tastes(POINTS)
    assert tastes is not None
    cells = [Cell(taste, size, seed) for taste in tastes for size in SIZES for seed in SEEDS]
    seeds = sorted({NOISE_SEED, *map(calibration_seed, cells)})
    assert len(seeds) == len(cells) + 1 and min(np.diff(seeds)) >= APART
