"""docs/rewards.md names every reward with its card's numbers, and every refusal of the server."""

from __future__ import annotations

import inspect
import re

import pytest

from helpers.repository import ROOT
from nft_pipeline.training.rewards import load_reward
from nft_pipeline.training.rewards.registry import BUILT_IN, import_path

PAGE = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
ROWS = {
    name: [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| `")
    for name in re.findall(r"`([^`]+)`", line.split("|")[1])
}


def test_every_reward_is_on_the_page() -> None:
    assert set(ROWS) == {*BUILT_IN, "remote:URL"}


@pytest.mark.parametrize("name", ["jpeg_size", "colourfulness", "sharpness"])
def test_its_numbers_are_those_of_the_card(name: str) -> None:
    info = load_reward(name).info
    assert ROWS[name][2] == f"{info.middle:g}, {info.spread:g}"


@pytest.mark.parametrize("name", ["image_reward", "pickscore", "hps_v2", "clip_score", "aesthetic"])
def test_its_weights_and_numbers_are_those_of_the_code(name: str) -> None:
    cls = import_path(BUILT_IN[name], name)
    middle, spread = (float(re.findall(rf"{key}=([\d.]+),", inspect.getsource(cls))[0]) for key in ("middle", "spread"))
    assert ROWS[name][2] == f"{middle:g}, {spread:g}"
    options = inspect.signature(cls).parameters
    assert options["head" if name == "aesthetic" else "weights"].default in ROWS[name][3]


def test_every_refusal_is_on_the_page() -> None:
    code = (ROOT / "training" / "rewards" / "server" / "serve.py").read_text(encoding="utf-8")
    kinds = set(re.findall(r"(?:Refusal|_fault)\(\s*\d+, \"(\w+)\"", code))
    assert kinds == {"wrong_token", "bad_request", "bad_picture", "body_too_large", "overloaded", "reward_failed"}
    assert all(f"`{kind}`" in PAGE for kind in kinds | {"gone"})
