"""card, push, pull, verify and export, run as a person runs them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from helpers.cards import light_adapter, shared_adapter
from helpers.local_hub import LocalHub
from nft_pipeline.adapter import write_adapter
from nft_pipeline.cli import main
from nft_pipeline.files.atomic import _sibling
from nft_pipeline.hub_cards.draw import draw_samples

REPO = "someone/tiny-red"


def test_from_a_folder_to_the_hub_and_back(
    tmp_path: Path, hub: LocalHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(shared_adapter(tmp_path / "a"))
    assert main(["verify", folder]) == 1
    assert "README.md: is missing" in capsys.readouterr().out
    assert main(["card", folder, REPO]) == 0
    assert main(["verify", folder]) == 0
    assert "no fault found" in capsys.readouterr().out
    assert main(["push", folder, REPO, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert f"files would go to {REPO}" in shown and "license: apache-2.0" in shown and not hub.repos
    assert main(["push", folder, REPO, "--tag", "v1", "--collection", "Dials"]) == 0
    shown = capsys.readouterr().out
    assert hub.repos[REPO].tags["v1"] in shown and "only you and its members can see it" in shown
    assert main(["pull", REPO, str(tmp_path / "b"), "--revision", "v1"]) == 0
    assert main(["verify", REPO]) == 0
    assert main(["info", REPO]) == 0
    assert "tiny-red" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert main(["export", REPO, "merged", "--strength", "2", "--out", "out"]) == 0
    assert (tmp_path / "out" / "tiny-red-strength-2.safetensors").is_file()


def test_a_licence_that_nobody_knows_is_asked_for(
    tmp_path: Path, hub: LocalHub, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(write_adapter(tmp_path / "a", light_adapter(licence="unknown")))
    assert main(["card", folder, REPO]) == 2
    assert "Look it up on the base model's page and give --licence" in capsys.readouterr().err
    assert not (tmp_path / "a" / "README.md").exists()
    assert main(["card", folder, REPO, "--licence", "mit"]) == 0


def test_a_refusal_ends_in_a_sentence_without_traceback(
    tmp_path: Path, hub: LocalHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(shared_adapter(tmp_path / "a")), REPO]) == 2
    assert "hf auth login" in capsys.readouterr().err
    assert main(["pull", "someone/nothing", str(tmp_path / "x")]) == 2
    assert "there is no such repository" in capsys.readouterr().err


@pytest.fixture
def drawable(tmp_path: Path) -> Path:
    """The folder of an adapter whose base model is tmp_path/model and draws in one step."""
    from dataclasses import replace

    from helpers.tiny import tiny_adapter, tiny_pipe

    pipe = tiny_pipe()
    pipe.save_pretrained(tmp_path / "model")
    defaults = {"num_inference_steps": 1, "guidance_scale": 1.0, "max_sequence_length": 4}
    (tmp_path / "model" / "call_defaults.json").write_text(json.dumps(defaults))
    adapter = tiny_adapter(pipe.transformer)
    return shared_adapter(tmp_path / "a", replace(adapter, config=replace(adapter.config, strength=0.5)))


def test_drawing_takes_any_prompt_and_strength_for_what_it_is(tmp_path: Path, drawable: Path) -> None:
    draw_samples(drawable, ["--ar"], [0], [-1e-05, 0.5], model=str(tmp_path / "model"))
    report = json.loads((drawable / "run_report.json").read_text())
    assert [(s["prompt"], s["strength"]) for s in report["samples"]] == [("--ar", -1e-05), ("--ar", 0.5)]
    assert all((drawable / s["file"]).is_file() for s in report["samples"])


def test_folders_that_a_killed_writer_left_aside_are_drawn_and_pushed(
    tmp_path: Path, hub: LocalHub, drawable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.rename(drawable / "samples", _sibling(drawable / "samples", "old"))
    os.rename(drawable, _sibling(drawable, "old"))
    draw_samples(drawable, ["a cat"], [0], [0.5], model=str(tmp_path / "model"))
    for command in (["card"], ["push", "--dry-run"]):
        os.rename(drawable / "samples", _sibling(drawable / "samples", "old"))
        assert main([*command, str(drawable), REPO]) == 0
    assert "samples/0-strength-0.5.png" in capsys.readouterr().out


def test_drawing_the_strip(tmp_path: Path, hub: LocalHub, drawable: Path) -> None:
    folder = drawable
    before = json.loads((folder / "run_report.json").read_text())
    arguments = ["--draw", "a cat", "a dog", "--seeds", "3", "--model", str(tmp_path / "model")]
    assert main(["card", str(folder), REPO, *arguments]) == 0
    report = json.loads((folder / "run_report.json").read_text())
    assert [(s["prompt"], s["seed"], s["strength"]) for s in report["samples"]] == [
        (prompt, 3, strength) for prompt in ("a cat", "a dog") for strength in (0.0, 0.5, 1.0, 1.5, 2.0)
    ]
    assert report["trained"] == before["trained"]
    assert {p.name for p in (folder / "samples").iterdir()} == {Path(s["file"]).name for s in report["samples"]}
    assert (folder / "plots" / "strip.png").is_file()
    assert str(tmp_path) not in (folder / "README.md").read_text()
