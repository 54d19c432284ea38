"""Pushed here, fetched by a fresh process with an empty cache: the same bytes, the same latents, the card's snippets.

One process does it all, for importing diffusers is most of its time.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.cards import light_report, shared_adapter
from helpers.local_hub import LocalHub
from helpers.tiny import CALL, sample, tiny_adapter, tiny_pipe
from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import Adapter, BaseModel
from nft_pipeline.adapters.keys import lora_modules
from nft_pipeline.hub_cards.push import push

REPO, BASE, DEEP = "someone/tiny-red", "someone/tiny-sd3", "someone/several"

FRESH = """
import json, sys, warnings
from pathlib import Path
out, call, snippets = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
from nft_pipeline.torchvision_repair import watch
watch()
import torch
from safetensors.torch import save_file
from nft_pipeline import DiffusionNFTPipeline, read_adapter
from nft_pipeline.hub_cards.pull import pull

found = {}
pull("someone/tiny-red", out / "pulled")
pull("someone/tiny-red", out / "tagged", revision="v1")
pull("someone/several", out / "deep", subfolder="adapters/red")
pipe = DiffusionNFTPipeline.from_pretrained("someone/tiny-sd3", nft_adapter="someone/tiny-red")
pipe.set_progress_bar_config(disable=True)
for strength in (0.0, 1.0, 1.7):
    latents = pipe(**call, generator=torch.Generator().manual_seed(0), nft_strength=strength).images
    found[f"latents {strength}"] = latents.contiguous()

import os
os.chdir(out)
for snippet in snippets:
    names = {"__name__": "__main__"}
    exec(snippet, names)
assert Path("picture.png").stat().st_size > 100
for name, module in names["pipe"].transformer.named_modules():  # of the last snippet, which is stock diffusers
    for adapter in getattr(module, "lora_A", {}):
        found[f"change {name}"] = module.get_delta_weight(adapter).contiguous()
save_file(found, "found.safetensors")

import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_OFFLINE = True
pull("someone/tiny-red", out / "offline")
read_adapter("someone/tiny-red", revision="v1")
"""


@dataclass(frozen=True)
class Trip:
    """What was pushed, where it and its base model are on disk, and what the fresh process left in `out`."""

    adapter: Adapter
    base: Path
    folder: Path
    hub: LocalHub
    out: Path


@pytest.fixture(scope="module")
def trip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trip]:
    place = tmp_path_factory.mktemp("trip")
    pipe = tiny_pipe()
    adapter = tiny_adapter(pipe.transformer)
    base = BaseModel(BASE, None, adapter.config.base_model.fingerprint)
    adapter = replace(adapter, config=replace(adapter.config, base_model=base))
    folder = shared_adapter(place / "adapter", adapter, light_report())
    pipe.save_pretrained(place / "base")
    with LocalHub() as hub, pytest.MonkeyPatch.context() as patch:
        hub.add(BASE, files_of(place / "base") | {"README.md": b"---\nlicense: apache-2.0\n---\n"})
        hub.add(DEEP, {f"adapters/red/{path}": data for path, data in files_of(folder).items()})
        hub.use_here(patch, place / "home")
        push(folder, REPO, tag="v1")
        snippets = re.findall(r"```python\n(.*?)```", hub.files(REPO)["README.md"].decode(), re.DOTALL)
        snippets = [fitted(snippet) for snippet in snippets]
        (place / "out").mkdir()
        arguments = [str(place / "out"), json.dumps(CALL), json.dumps(snippets)]
        done = subprocess.run(
            [sys.executable, "-c", FRESH, *arguments],
            env=hub.environment(place / "empty"),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        yield Trip(adapter, place / "base", folder, hub, place / "out")


def fitted(snippet: str) -> str:
    """The card's snippet for a base model without a T5, in fp32 where weights are compared, and in one step."""
    if "load_lora_weights" in snippet:
        return snippet.replace("torch.bfloat16", "torch.float32, text_encoder_3=None, tokenizer_3=None")
    assert "guidance_scale=1,\n" in snippet
    return snippet.replace("guidance_scale=1,\n", "guidance_scale=1, num_inference_steps=1, max_sequence_length=4\n")


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["pulled", "tagged", "offline"])
def test_every_file_comes_back_byte_for_byte(trip: Trip, name: str) -> None:
    pulled = files_of(trip.out / name)
    assert pulled == trip.hub.files(REPO)
    assert {path: pulled[path] for path in files_of(trip.folder)} == files_of(trip.folder)


def test_a_subfolder_comes_back_too(trip: Trip) -> None:
    assert files_of(trip.out / "deep") == files_of(trip.folder)


@pytest.mark.parametrize("strength", [0.0, 1.0, 1.7])
def test_latents_are_those_of_the_local_folder_bit_for_bit(trip: Trip, strength: float) -> None:
    pipe: Any = DiffusionNFTPipeline.from_pretrained(trip.base, nft_adapter=trip.folder)
    pipe.set_progress_bar_config(disable=True)
    here = sample(pipe, nft_strength=strength)
    assert torch.equal(load_file(trip.out / "found.safetensors")[f"latents {strength}"], here)
    assert strength == 0 or not torch.equal(here, sample(pipe, nft_strength=0.0))


def test_the_stock_loader_gives_the_same_lora_at_ratio_one(trip: Trip) -> None:
    found = load_file(trip.out / "found.safetensors")
    changes = {key.removeprefix("change "): tensor for key, tensor in found.items() if key.startswith("change ")}
    assert sorted(changes) == lora_modules(trip.adapter.lora)
    for module, change in changes.items():
        a, b = (trip.adapter.lora[f"transformer.{module}.lora_{side}.weight"] for side in "AB")
        ratio = ((change * (b @ a)).sum() / (b @ a).square().sum()).item()
        assert f"{ratio:.3f}" == "1.000", module
        torch.testing.assert_close(change, b @ a, msg=module)


def test_the_cards_snippets_ran(trip: Trip) -> None:
    card = trip.hub.files(REPO)["README.md"].decode()
    assert card.count("```python") == 2 and (trip.out / "picture.png").is_file()
