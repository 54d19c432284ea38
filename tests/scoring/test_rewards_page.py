"""docs/rewards.md has every reward with its card, and every refusal of the server."""

from __future__ import annotations

import re

import pytest

from helpers.repository import ROOT
from helpers.rewards_page import PAGE, page
from nft_pipeline.training.rewards import load_reward
from nft_pipeline.training.rewards.registry import built_in, import_path

TEXT = PAGE.read_text(encoding="utf-8")


def test_the_table_is_made_from_the_rewards() -> None:
    assert page() == TEXT, "write the table of docs/rewards.md again: make pages"


@pytest.mark.parametrize("name", ["jpeg_size", "colourfulness", "sharpness", "shapes_warm", "shapes_eval", "likes"])
def test_a_reward_without_weights_has_the_card_of_its_class(name: str) -> None:
    assert load_reward(name).info == import_path(built_in()[name], name).info


def test_every_built_in_reward_has_a_card_of_its_name_before_it_is_made() -> None:
    for name, path in built_in().items():
        info = getattr(import_path(path, name), "info", None)
        assert name == "remote:URL" if info is None else info.name == name


def test_every_refusal_is_on_the_page() -> None:
    server = ROOT / "training" / "rewards" / "server"
    code = "".join((server / name).read_text(encoding="utf-8") for name in ("serve.py", "gate.py"))
    kinds = set(re.findall(r"\(\s*\d{3}, \"(\w+)\"", code))
    expected = {
        "bad_request",
        "bad_picture",
        "overloaded",
        "reward_failed",
        "wrong_token",
        "too_slow",
        "body_too_large",
    }
    assert kinds == expected
    assert all(f"`{kind}`" in TEXT for kind in kinds | {"gone"})
