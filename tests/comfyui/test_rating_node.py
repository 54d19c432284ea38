"""The node that rates pictures, on a FAKE of ComfyUI: what the trainer reads, and what is refused."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import pytest
import torch

from helpers import fake_comfyui as fake
from helpers.comfyui_world import World
from nft_pipeline.errors import GuidanceError
from nft_pipeline.files.picture_list import ratings_lock
from nft_pipeline.training.data.folder import read_folder


def test_ratings_are_what_the_trainer_reads(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd35m.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red cube", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["1", 1]}},
        "4": {"class_type": "KSampler", "inputs": {
            "model": ["1", 0], "seed": 7, "cfg": 3.5, "positive": ["2", 0], "negative": ["3", 0]}},
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "7": {"class_type": "NFTRateImages", "inputs": {"images": ["5", 0]}},
    }  # fmt: skip
    monkeypatch.setattr(fake.ComfyNode.hidden, "prompt", graph)
    images = torch.rand(2, 8, 8, 3, generator=torch.Generator().manual_seed(1))
    rate = world.nodes.NFTRateImages.execute
    rate(images, "like", 0.5, "ratings", "")
    rate(images, "score", 0.25, "ratings", "another prompt", "1")
    folder = world.folder / "output" / "ratings"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    facts = {"seed": 7, "guidance_scale": 3.5, "model": "sd35m.safetensors"}
    first = {"prompt": "another prompt", "score": 0.25, "batch_index": 0}
    assert rows[0] == {"image": rows[0]["image"], **first, **facts}
    assert rows[1] == {"image": rows[1]["image"], "prompt": "a red cube", "liked": True, "batch_index": 1, **facts}
    assert sorted(p.name for p in folder.glob("*.png")) == sorted(row["image"] for row in rows)


def rows_of(world: World) -> list[dict[str, Any]]:
    path = world.folder / "output" / "ratings" / "metadata.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_a_first_run_rates_nothing_and_buttons_rate_single_pictures(world: World) -> None:
    node = world.nodes.NFTRateImages
    (verdict,) = [entry for entry in node.define_schema().inputs if entry.id == "verdict"]
    assert verdict.facts["default"] == "not rated yet"
    shown = node.execute(torch.rand(3, 8, 8, 3), verdict.facts["default"], 0.5, "ratings", "a cube").ui["rated"]
    assert [entry["verdict"] for entry in shown] == ["not rated yet"] * 3
    assert rows_of(world) == [] and not (world.folder / "output").exists()
    button = sys.modules[node.__module__].SHOWN.rate
    assert button(shown[1]["name"], "like") == "like" and button(shown[2]["name"], "dislike") == "dislike"
    assert [(row["image"], row["liked"]) for row in rows_of(world)] == [
        (shown[1]["name"], True),
        (shown[2]["name"], False),
    ]
    button(shown[1]["name"], "dislike")
    assert [row["liked"] for row in rows_of(world)] == [False, False]
    with pytest.raises(GuidanceError, match="not kept any more"):
        button("nosuch.png", "like")


def test_each_picture_has_its_own_seed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The seed may come over a link; a picture of a batch is drawn from the seed at its place in it."""
    graph = {
        "1": {"class_type": "PrimitiveInt", "inputs": {"value": 11}},
        "2": {"class_type": "KSampler", "inputs": {"seed": ["1", 0], "cfg": 1.0}},
        "3": {"class_type": "LatentFromBatch", "inputs": {"samples": ["2", 0], "batch_index": 2, "length": 2}},
        "4": {"class_type": "NFTRateImages", "inputs": {"images": ["3", 0]}},
        "7": {"class_type": "NFTRateImages", "inputs": {"images": ["2", 0]}},
    }
    hidden = fake.ComfyNode.hidden
    monkeypatch.setattr(hidden, "prompt", graph)
    rate = world.nodes.NFTRateImages.execute
    rate(torch.rand(1, 8, 8, 3), "like", 0.5, "ratings", "a cube")
    monkeypatch.setattr(hidden, "unique_id", "4")
    rate(torch.rand(2, 8, 8, 3), "like", 0.5, "ratings", "a cube")
    assert [(row["seed"], row.get("batch_index")) for row in rows_of(world)] == [(11, None), (11, 2), (11, 3)]
    assert len(read_folder(world.folder / "output" / "ratings").pictures) == 3


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"verdict": "meh"}, "verdict is 'meh'"),
        ({"verdict": "score", "score": float("nan")}, "score is nan"),
        ({"folder": "../x"}, "expected one inside ComfyUI's output folder"),
        ({"folder": ""}, "expected one inside ComfyUI's output folder"),
        ({"prompt": " "}, "no prompt was found"),
        ({"pictures": "2"}, "'2' in pictures is none of them"),
    ],
)
def test_a_rating_with_a_fault_writes_nothing(world: World, values: dict[str, Any], fault: str) -> None:
    given = {"verdict": "like", "score": 0.5, "folder": "ratings", "prompt": "a cube", **values}
    with pytest.raises(GuidanceError, match=fault):
        world.nodes.NFTRateImages.execute(torch.rand(1, 4, 4, 3), **given)
    assert not (world.folder / "output").exists()


def test_a_damaged_list_of_ratings_is_left_alone(world: World) -> None:
    folder = world.folder / "output" / "ratings"
    folder.mkdir(parents=True)
    (folder / "metadata.jsonl").write_text("no json\n")
    with pytest.raises(GuidanceError, match="line 1 is no JSON"):
        world.nodes.NFTRateImages.execute(torch.rand(1, 4, 4, 3), "like", 0.5, "ratings", "a cube")
    assert (folder / "metadata.jsonl").read_text() == "no json\n" and not list(folder.glob("*.png"))


def test_a_rating_waits_for_the_trainers_tools(world: World) -> None:
    folder = world.folder / "output" / "ratings"
    arguments = (torch.rand(1, 4, 4, 3), "like", 0.5, "ratings", "a cube")
    with ratings_lock(folder):
        rating = threading.Thread(target=world.nodes.NFTRateImages.execute, args=arguments)
        rating.start()
        rating.join(0.3)
        assert rating.is_alive() and not (folder / "metadata.jsonl").exists()
        (folder / "metadata.jsonl").write_text('{"image": "other.png", "prompt": "a ring", "liked": false}\n')
    rating.join(60)
    assert [json.loads(line)["liked"] for line in (folder / "metadata.jsonl").read_text().splitlines()] == [False, True]
