"""Prompts out of the pictures themselves, as A1111 and ComfyUI write them, and a browser that is closed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from nft_pipeline.files.picture_prompt import prompt_in
from nft_pipeline.training.rewards.folders.rating import Ratings, rating_server

GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 1, "positive": ["9", 0], "negative": ["7", 0]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly", "clip": ["4", 1]}},
    "9": {"class_type": "ControlNetApply", "inputs": {"negative": ["7", 0], "conditioning": ["6", 0]}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["8", 0], "clip": ["4", 1]}},
    "8": {"class_type": "PrimitiveString", "inputs": {"value": "a red ring"}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.safetensors"}},
}
PARAMETERS = "a red ring,\non sand\nNegative prompt: ugly\nSteps: 20, Sampler: Euler, CFG scale: 7"


def picture(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize(
    ("texts", "prompt"),
    [
        ({"parameters": PARAMETERS}, "a red ring,\non sand"),
        ({"parameters": "a red ring\nSteps: 20"}, "a red ring"),
        ({"parameters": "Steps: 20"}, None),
        ({"prompt": json.dumps(GRAPH)}, "a red ring"),
        ({"prompt": json.dumps({**GRAPH, "8": {"inputs": {"value": ["3", 0]}}})}, None),  # round in a circle
        ({"prompt": "no json"}, None),
        ({"prompt": "[1, 2]"}, None),
        ({"prompt": json.dumps({"1": {"inputs": {"positive": 3}}})}, None),
        ({"Software": "mine"}, None),
        ({}, None),
    ],
)
def test_the_prompt_is_read_out_of_the_picture(tmp_path: Path, texts: dict[str, str], prompt: str | None) -> None:
    assert prompt_in(picture(tmp_path / "x.png", **texts)) == prompt


def test_no_picture_has_no_prompt(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no picture")
    Image.new("RGB", (4, 4)).save(tmp_path / "x.jpg")
    assert prompt_in(tmp_path / "x.png") is None and prompt_in(tmp_path / "x.jpg") is None
    assert prompt_in(tmp_path / "missing.png") is None


def test_rating_takes_them_behind_the_line_and_before_the_one_for_all(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", parameters=PARAMETERS)
    picture(tmp_path / "b.png", parameters=PARAMETERS)
    picture(tmp_path / "c.png")
    (tmp_path / "metadata.jsonl").write_text('{"image": "b.png", "prompt": "its own"}\n')
    assert Ratings(tmp_path, "for all").prompts == {
        "a.png": "a red ring,\non sand",
        "b.png": "its own",
        "c.png": "for all",
    }


def test_a_browser_that_is_closed_is_no_traceback(tmp_path: Path, capsys: Any) -> None:
    picture(tmp_path / "a.png")
    with rating_server(Ratings(tmp_path, "x")) as server:
        try:
            raise ConnectionResetError("gone")
        except ConnectionResetError:
            server.handle_error(None, ("127.0.0.1", 1))  # type: ignore[arg-type]
        assert capsys.readouterr().err == ""
        try:
            raise ValueError("a fault of ours")
        except ValueError:
            server.handle_error(None, ("127.0.0.1", 1))  # type: ignore[arg-type]
        assert "a fault of ours" in capsys.readouterr().err
