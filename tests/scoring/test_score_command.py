"""`diffusion-nft score`: a folder to metadata.jsonl, resumed, cached, and nothing lost when a reward fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import my_rewards
from helpers.plain_pictures import noise, plain
from nft_pipeline.cli import main
from nft_pipeline.files.picture_list import PictureListError, read_rows, update_rows
from nft_pipeline.training.rewards import load_rewards
from nft_pipeline.training.rewards.folders.scoring import score_folder

MINE = "helpers.my_rewards"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures, one of them deeper, with prompts in three places."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pictures = tmp_path / "pictures"
    (pictures / "more").mkdir(parents=True)
    plain("rgb(255,0,0)").save(pictures / "a.png")
    plain("rgb(51,0,0)").save(pictures / "b.png")
    plain("rgb(102,0,0)").save(pictures / "more" / "c.webp", lossless=True)
    (pictures / "a.txt").write_text("a red square\n")
    (pictures / "metadata.jsonl").write_text('{"image": "b.png", "prompt": "a dark one", "seed": 7, "liked": true}\n')
    (pictures / ".hidden.png").write_bytes(b"not a picture")
    return pictures


def lines(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["image"]: row for row in map(json.loads, (folder / "metadata.jsonl").read_text().splitlines())}


def test_a_folder_becomes_metadata(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["score", str(folder), "--reward", f"{MINE}:redness=3", "--reward", f"{MINE}:Darkness", "--prompt", "p"]
    assert main([*command, "--option", f"{MINE}:Darkness.batch=1"]) == 0
    captured = capsys.readouterr()
    assert "3 scored now, 3 in" in captured.out and "scoring" in captured.err
    rows = lines(folder)
    assert list(rows) == ["b.png", "a.png", "more/c.webp"]
    dark = 85.0
    assert rows["a.png"] == {
        "image": "a.png",
        "prompt": "a red square",
        "score": pytest.approx((3 * 1 + 1 - dark / 255) / 4),
        "scores": {f"{MINE}:redness": 1.0, f"{MINE}:Darkness": dark},
        "reward": f"3 {MINE}:redness + 1 {MINE}:Darkness",
    }
    assert rows["b.png"]["seed"] == 7 and rows["b.png"]["liked"] is True and rows["b.png"]["prompt"] == "a dark one"
    assert rows["more/c.webp"]["prompt"] == "p"


def test_a_second_run_scores_what_is_new(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mix = load_rewards({f"{MINE}:Darkness": 1})
    assert score_folder(folder, mix, prompt="p") == 3
    noise(0).save(folder / "d.png")
    assert score_folder(folder, mix, prompt="p") == 1
    assert score_folder(folder, mix) == 0
    assert score_folder(folder, mix, again=True) == 4
    assert score_folder(folder, load_rewards({f"{MINE}:Darkness": -1})) == 4


def test_a_changed_weight_costs_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = my_rewards.Darkness()
    monkeypatch.setattr(my_rewards, "made_already", reward)
    for weight in ("1", "2"):
        assert main(["score", str(folder), "--reward", f"{MINE}:made_already={weight}", "--prompt", "p"]) == 0
    assert sum(reward.calls) == 3
    command = ["score", str(folder), "--reward", f"{MINE}:made_already=3", "--prompt", "p", "--no-cache"]
    assert main(command) == 0 and sum(reward.calls) == 6


def test_a_reward_that_fails_loses_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    update_rows(folder, {"b.png": {"prompt": "nan"}})
    before = lines(folder)
    mix = load_rewards({f"{MINE}:spoilt": 1})
    mix.batch = 1
    with pytest.raises(ValueError, match=r"NaN or infinite(.|\n)*while scoring b\.png to b\.png, 1 done"):
        score_folder(folder, mix, prompt="p")
    rows = lines(folder)
    assert rows["a.png"]["score"] == 0.5 and rows["b.png"] == before["b.png"] and "more/c.webp" not in rows
    update_rows(folder, {"b.png": {"prompt": "fine"}})
    assert score_folder(folder, mix, prompt="p") == 2


def test_a_broken_picture_is_named_and_the_others_are_scored(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise(0).save(folder / "broken.png")
    (folder / "broken.png").write_bytes((folder / "broken.png").read_bytes()[:1000])
    assert main(["score", str(folder), "--reward", f"{MINE}:redness", "--prompt", "p"]) == 2
    assert (
        "1 pictures of 4 cannot be read and have no score; the others have:\n  broken.png: " in capsys.readouterr().err
    )
    assert "score" in lines(folder)["more/c.webp"] and "broken.png" not in lines(folder)


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["--reward", f"{MINE}:redness"], "1 pictures of 3 have no prompt, the first is more/c.webp"),
        (["--reward", "orc"], "did you mean 'ocr'?"),
        (["--reward", "ocr=much"], "weight is 'much', expected a number"),
        (["--reward", "ocr", "--option", "pickscore.weights=x"], "expected NAME.KEY=VALUE with one of the rewards ocr"),
        (["--reward", "ocr", "--batch", "0"], "--batch is 0"),
    ],
)
def test_faults_are_named_and_nothing_is_written(
    folder: Path, arguments: list[str], phrase: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "metadata.jsonl").read_bytes()
    assert main(["score", str(folder), *arguments]) == 2
    assert phrase in capsys.readouterr().err
    assert (folder / "metadata.jsonl").read_bytes() == before


def test_folders_without_pictures_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(tmp_path / "no"), "--reward", "jpeg_size"]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert main(["score", str(tmp_path), "--reward", "jpeg_size"]) == 2
    assert "has no pictures; expected files ending in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "phrase"),
    [
        ("{", "line 2 is no JSON"),
        ("[1]", "line 2: it holds list, expected an object"),
        ('{"prompt": "x"}', "line 2: image is None"),
        ('{"image": "../x.png"}', "expected a path inside the folder"),
        ('{"image": "b.png"}', "line 2: 'b.png' stands in line 1 already"),
        ('{"image": "c.png", "liked": 1}', "liked is 1, expected true or false"),
        ('{"image": "c.png", "score": "high"}', "score is 'high', expected a finite number"),
    ],
)
def test_bad_lines_are_named_and_stay(folder: Path, line: str, phrase: str) -> None:
    file = folder / "metadata.jsonl"
    file.write_text(file.read_text() + line + "\n")
    before = file.read_bytes()
    with pytest.raises(PictureListError) as caught:
        update_rows(folder, {"a.png": {"score": 1.0}})
    assert phrase in str(caught.value) and file.read_bytes() == before


def test_update_merges_and_removes(folder: Path) -> None:
    update_rows(folder, {"b.png": {"liked": None, "score": 0.25}, "é.png": {"prompt": "ü"}})
    assert read_rows(folder) == [
        {"image": "b.png", "prompt": "a dark one", "seed": 7, "score": 0.25},
        {"image": "é.png", "prompt": "ü"},
    ]
