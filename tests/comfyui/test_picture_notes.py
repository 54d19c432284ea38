"""What guided a picture, as it is written into the picture's file; on a FAKE of ComfyUI (helpers/fake_comfyui.py)."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import fake_comfyui as fake
from helpers.comfyui_world import World
from nft_pipeline.comfy_nodes.files.picture_notes import notes_of


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


@pytest.fixture
def adapter(tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "warm.safetensors"
    path.write_bytes(b"some weights")
    return path, hashlib.sha256(b"some weights").hexdigest()


def notes(graph: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    def path_of(name: str) -> str:
        if name != path.name:
            raise FileNotFoundError(name)
        return str(path)

    return list(notes_of(graph, path_of))


def test_what_is_typed_is_noted_with_the_hash_of_the_file(adapter: tuple[Path, str]) -> None:
    path, sha256 = adapter
    guidance = node("NFTRewardGuidance", model=["1", 0], adapter="warm.safetensors", strength=1.5, law="auto", cap=0.0)
    graph = {"1": node("UNETLoader", unet_name="x"), "5": guidance, "6": node("KSampler", model=["5", 0], seed=3)}
    expected = {"adapter": "warm.safetensors", "strength": 1.5, "law": "auto", "cap": 0.0, "sha256": sha256}
    assert notes(graph, path) == [{"node": "5", **expected}]
    path.write_bytes(b"others")
    assert notes(graph, path)[0]["sha256"] == hashlib.sha256(b"others").hexdigest()


def test_what_is_connected_is_followed(adapter: tuple[Path, str]) -> None:
    path, sha256 = adapter
    graph = {
        "1": node("NFTLoadAdapter", adapter="warm.safetensors", kind="auto"),
        "2": node("NFTStrengthSweep", strengths="0, 1"),
        "3": node("PrimitiveFloat", value=0.7),
        "4": node("SomebodysMaths", a=1),
        "5": node("NFTApplyAdapter", adapter=["1", 0], strength=["2", 0]),
        "6": node("NFTApplyAdapter", adapter=["1", 0], strength=["3", 0]),
        "7": node("NFTGuider", adapter=["1", 0], strength=["4", 0], cfg=2.0),
        "8": node("NFTStrengthGrid", adapter="other.safetensors", loaded=["1", 0], strengths="0 to 2", seeds="1"),
        "9": node("NFTRewardGuidance", adapter="gone.safetensors", strength=1.0),
    }
    common = {"adapter": "warm.safetensors", "sha256": sha256}
    assert notes(graph, path) == [
        {"node": "5", "strength": "0, 1", **common},
        {"node": "6", "strength": 0.7, **common},
        {"node": "7", "strength": "from node 4", "cfg": 2.0, **common},
        {"node": "8", "strengths": "0 to 2", **common},
        {"node": "9", "adapter": "gone.safetensors", "strength": 1.0},
    ]


def test_each_job_that_guides_gets_them_and_others_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake.install(monkeypatch, tmp_path)
    World(tmp_path, [])
    from nft_pipeline.comfy_nodes.nodes import Extension

    asyncio.run(Extension().get_node_list())
    (handler,) = sys.modules["server"].PromptServer.handlers  # type: ignore[attr-defined]
    graph = {"5": node("NFTRewardGuidance", adapter="liked.safetensors", strength=1.0)}
    for data in ({}, {"extra_data": {}}, {"extra_data": {"extra_pnginfo": None}}):
        job = handler({"prompt": graph, **data})
        (note,) = job["extra_data"]["extra_pnginfo"]["reward_guidance"]
        assert note["adapter"] == "liked.safetensors" and len(note["sha256"]) == 64
    workflow = {"nodes": []}
    job = handler({"prompt": graph, "extra_data": {"extra_pnginfo": {"workflow": workflow}}})
    assert job["extra_data"]["extra_pnginfo"]["workflow"] == workflow
    plain = {"prompt": {"6": node("KSampler", seed=3)}, "client_id": "x"}
    assert handler(dict(plain)) == plain and handler({}) == {}
