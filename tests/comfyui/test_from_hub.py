"""Adapters by the id of their repository: from a Hub on this machine into models/loras, on a FAKE of ComfyUI."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from helpers.comfyui_world import World, random_lora
from helpers.local_hub import LocalHub
from nft_pipeline.adapter import AdapterError
from nft_pipeline.comfy_nodes.files.hub import keep_from_hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub() as local:
        local.use_here(monkeypatch, tmp_path / "home", token=None)
        yield local


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(world: World, *values: Any) -> tuple[Any, str]:
    reward, name = world.nodes.NFTHubAdapter.execute(*values).args
    return reward, name


def test_one_of_ours_is_fetched_once_and_guides_as_its_file_does(world: World, hub: LocalHub) -> None:
    hub.add("someone/likes", files_of(world.folder / "written" / "liked"))
    reward, name = load(world, "https://huggingface.co/someone/likes/")
    assert name == os.path.join("hub", "someone--likes", "liked.safetensors")
    kept = world.folder / "loras" / name
    assert kept.read_bytes() == (world.folder / "loras" / "liked.safetensors").read_bytes() and not kept.is_symlink()
    assert [path.name for path in (world.folder / "loras" / "hub").iterdir()] == ["someone--likes"]
    assert not any(path.endswith("lora/adapter_model.safetensors") for _, path in hub.requests)
    asked = len(hub.requests)
    assert load(world, "someone/likes")[1] == name and len(hub.requests) == asked
    assert world.texts[-1] == f"kept as {name}"
    guided = world.nodes.NFTApplyAdapter.execute(world.model, reward, strength=1.0).args[0]
    assert torch.equal(world.sample(guided), world.sample(world.guided("liked")))


def test_a_plain_lora_and_one_of_peft_with_its_config(world: World, hub: LocalHub) -> None:
    weights = save(random_lora(7))
    hub.add("someone/plain", {"README.md": b"x", "weights/some.safetensors": weights})
    reward, name = load(world, "someone/plain", "auto", "", "main")
    assert name == os.path.join("hub", "someone--plain@main", "some.safetensors") and reward.head is None
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "a/base"}
    hub.add("someone/peft", {"adapter_model.safetensors": weights, "adapter_config.json": json.dumps(config).encode()})
    reward, _ = load(world, "someone/peft")
    assert reward.scales == (2.0,) and reward.config.base_model.id == "a/base"


def test_one_of_several_files_is_named(world: World, hub: LocalHub) -> None:
    hub.add("someone/many", {"a.safetensors": save(random_lora(1)), "b/c.safetensors": save(random_lora(2))})
    with pytest.raises(AdapterError, match=r"has 2 safetensors files: a.safetensors, b/c.safetensors"):
        load(world, "someone/many")
    assert load(world, "someone/many", "auto", "b/c.safetensors")[1].endswith("c.safetensors")
    with pytest.raises(AdapterError, match=r"has no file d\.safetensors"):
        load(world, "someone/many", "auto", "d.safetensors")
    assert [path.name for path in (world.folder / "loras" / "hub" / "someone--many").iterdir()] == ["c.safetensors"]


def test_what_cannot_be_had_ends_in_a_sentence(world: World, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AdapterError, match="there is no such repository"):
        load(world, "someone/nothing")
    hub.add("someone/empty", {"README.md": b"x", "model.bin": b"x"})
    with pytest.raises(AdapterError, match="has no safetensors files"):
        load(world, "someone/empty")
    for repo in ("", "likes", "../../etc/passwd", "a/b/c"):
        with pytest.raises(AdapterError, match="is no repository of the Hub"):
            load(world, repo)
    with pytest.raises(AdapterError, match="is no repository of the Hub"):
        load(world, "a/b", "auto", "../../x.safetensors")
    assert list((world.folder / "loras" / "hub").iterdir()) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AdapterError, match="this Python has no huggingface_hub"):
        keep_from_hub(world.folder / "loras", "someone/else")
