"""Runs on a tiny random model that calibrate their dial, and the command that calibrates an adapter there is."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiny_run import ONLINE, SMALL, picture_folder, save_tiny
from nft_pipeline.adapter import Adapter, read_adapter
from nft_pipeline.cli import main
from nft_pipeline.dial.promise import tilt_at_weight
from nft_pipeline.training.dial.calibrate import LEAST, SHARES
from nft_pipeline.training.dial.draws import Draws
from nft_pipeline.training.run import trainer
from nft_pipeline.training.run.stopping import Stopped
from nft_pipeline.training.settings.choices import KINDS
from nft_pipeline.training.settings.config import TrainConfig

CALIBRATED: dict[str, Any] = {"calibration_pictures": LEAST, "pool_batch": 48}
BRIGHT, PROMPTS = "helpers.tiny_run:bright", "helpers.tiny_run:prompts"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny(tmp_path_factory.mktemp("model"))


def train(model: str, out: Path, settings: dict[str, Any], **more: Any) -> tuple[Adapter, str]:
    """The adapter of a run with a calibration, and what was said."""
    lines: list[str] = []
    config = TrainConfig.from_mapping({**settings, **CALIBRATED, "base_model": model, **more})
    trainer.train(config, out, say=lines.append, device="cpu")
    return read_adapter(out / "adapter"), "\n".join(lines)


@pytest.fixture(scope="module")
def offline(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Adapter, str]:
    out = tmp_path_factory.mktemp("offline")
    return out, *train(model, out, SMALL)


def test_a_run_keeps_what_it_found_in_the_adapter(offline: tuple[Path, Adapter, str]) -> None:
    _, adapter, said = offline
    dial = adapter.config.dial
    assert dial is not None and (dial.judged_by, dial.judge) == ("reward", BRIGHT)
    assert (dial.prompts, dial.pictures, dial.steps) == (3, int(SHARES["base"] * LEAST), 2)
    assert 0.3 < dial.rate < 0.7, "rank: half of the base model's pictures"
    assert {entry.mode for entry in dial.maps} == {"single", "two_pass"}
    assert f"calibrating the dial: {LEAST} held-out pictures, judged by {BRIGHT}" in said
    assert f"dial: {dial.note}" in said if dial.note else "strength 1: " in said


def test_the_calibration_changes_no_weight(offline: tuple[Path, Adapter, str], model: str, tmp_path: Path) -> None:
    adapter = offline[1]
    plain, said = train(model, tmp_path, SMALL, calibration_pictures=0)
    assert plain.config.dial is None and "calibrating" not in said
    assert all(bool((plain.lora[key] == tensor).all()) for key, tensor in adapter.lora.items())


def test_a_budget_too_small_to_say_anything_is_named(model: str, tmp_path: Path) -> None:
    adapter, said = train(model, tmp_path, SMALL, calibration_pictures=None)
    assert adapter.config.dial is None
    assert f"the dial is not calibrated: 10 pictures are a tenth of this run, {LEAST} are needed" in said


def test_a_policy_of_rounds_is_stored_with_the_tilt_that_was_measured(model: str, tmp_path: Path) -> None:
    config = train(model, tmp_path, ONLINE)[0].config
    assert config.kind == "policy" and config.dial is not None
    assert config.dial.slope == 1.0 and config.dial.offsets == ()
    assert config.tilt == pytest.approx(max(tilt_at_weight(config.dial.own, 1.0), 1e-3))


def test_where_only_likes_exist_alpha_judges_and_it_is_said(model: str, tmp_path: Path) -> None:
    likes = {key: value for key, value in SMALL.items() if key not in ("reward", "prompts", "optimality")}
    data = picture_folder(tmp_path / "data")
    adapter, said = train(model, tmp_path / "run", likes, data=str(data), objective="positive")
    dial = adapter.config.dial
    assert dial is not None and (dial.judged_by, dial.judge) == ("alpha", "the alpha head, at low noise")
    assert {entry.slope for entry in dial.maps} == {0.0}
    assert f"{LEAST} held-out pictures, judged by the alpha head, at low noise" in said


@pytest.mark.parametrize("objective", [kind for kind in KINDS if kind != "positive"])
def test_without_a_reward_an_adapter_that_has_no_head_is_not_calibrated_and_it_is_said(
    objective: str, model: str, tmp_path: Path
) -> None:
    """A policy learns with an alpha head beside it, but the adapter has none that could judge its pictures."""
    likes = {key: value for key, value in SMALL.items() if key not in ("reward", "prompts", "optimality")}
    data = picture_folder(tmp_path / "data")
    adapter, said = train(model, tmp_path / "run", likes, data=str(data), objective=objective)
    assert adapter.head is None and adapter.config.dial is None
    assert "the dial is not calibrated: nothing can judge new pictures" in said
    assert "diffusion-nft calibrate" in said and "--by-hand" in said


def test_a_run_that_is_stopped_while_it_calibrates_goes_on(
    offline: tuple[Path, Adapter, str], model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Draws.draw, []

    def asks_to_stop(self: Draws, *args: Any, **more: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args, **more)

    monkeypatch.setattr(Draws, "draw", asks_to_stop)
    with pytest.raises(Stopped, match="stopped at step 4 of 4"):
        train(model, tmp_path, SMALL)
    assert len(calls) == 3 and read_adapter(tmp_path / "adapter").config.dial is None  # as it was trained
    monkeypatch.setattr(Draws, "draw", real)
    adapter, said = train(model, tmp_path, SMALL)
    assert "resumed at step 4" in said and adapter.config.dial == offline[1].config.dial


# --- the command ---


def calibrate(adapter: Path | str, model: str, *more: str) -> int:
    call = ["calibrate", str(adapter), "--model", model, "--pictures", str(LEAST), "--steps", "2", "--device", "cpu"]
    return main([*call, "--prompts", PROMPTS, "--batch", "48", *more])


def test_the_command_finds_what_moves_and_says_so_when_nothing_does(
    offline: tuple[Path, Adapter, str], model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, adapter, _ = offline
    codes = {}
    for name in ("bright", "gloomy"):
        codes[name] = calibrate(
            out / "adapter", model, "--reward", f"helpers.tiny_run:{name}", "--out", str(tmp_path / name)
        )
        said = capsys.readouterr().out
        found = read_adapter(tmp_path / name)
        assert found.config.dial is not None and found.config.dial.judge == f"helpers.tiny_run:{name}"
        assert (codes[name] == 1) == ("not learnable from this" in said) == bool(found.config.dial.note)
        assert ("strength 1: " in said) == (codes[name] == 0) and f"written to {tmp_path / name}" in said
        assert all(np.array_equal(found.lora[key], tensor) for key, tensor in adapter.lora.items())
    assert 1 in codes.values(), "not both can rise"
    assert read_adapter(out / "adapter").config == adapter.config, "--out leaves the adapter as it was"


def test_the_command_keeps_what_stands_beside_the_adapter(
    offline: tuple[Path, Adapter, str], model: str, tmp_path: Path
) -> None:
    copy = tmp_path / "adapter"
    assert calibrate(offline[0] / "adapter", model, "--trust", "--out", str(copy)) in (0, 1)
    (copy / "README.md").write_text("a card")
    (copy / "samples").mkdir(exist_ok=True)
    (copy / "samples" / "one.txt").write_text("a sample")
    before = {path.relative_to(copy) for path in copy.rglob("*")}
    assert calibrate(copy, model, "--seed", "7", "--reward", "alpha") in (0, 1)
    assert {path.relative_to(copy) for path in copy.rglob("*")} == before
    assert (copy / "README.md").read_text() == "a card" and (copy / "samples" / "one.txt").read_text() == "a sample"
    dial = read_adapter(copy).config.dial
    assert dial is not None and dial.judged_by == "alpha"


def test_the_command_refuses_what_it_cannot_do_before_it_draws(
    offline: tuple[Path, Adapter, str], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = offline[0] / "adapter"
    before = (folder / "nft_config.json").read_bytes()
    for adapter, more, words in (
        (folder, ["--prompts", "helpers.tiny_run:promts", "--trust"], "promts"),
        (folder, ["--reward", "helpers.tiny_run:brigth"], "brigth"),
        (folder, [], "names code of your own or of somebody else: helpers.tiny_run:bright. Importing it runs it"),
        (folder, ["--pictures", "100"], "--pictures is 100, expected 240 or more"),
        ("shapes-warm", [], "there is no place to write to; give --out"),
    ):
        assert calibrate(adapter, model, *more) == 2
        assert words in capsys.readouterr().err
    assert (folder / "nft_config.json").read_bytes() == before
