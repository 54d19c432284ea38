"""Planted faults: each is found, in one line that says what to do. And a sound adapter has none."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from helpers.cards import light_adapter, picture, shared_adapter
from helpers.local_hub import LocalHub
from helpers.plants import Plant, in_json, in_tensors
from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import AdapterError
from nft_pipeline.cli import main
from nft_pipeline.files.atomic import _sibling
from nft_pipeline.hub_cards.push import make_card, push, write_card
from nft_pipeline.hub_cards.verify import verify
from nft_pipeline.models import ADAPTERS, shipped_adapter

LORA = "pytorch_lora_weights.safetensors"
HEAD = "alpha_head/diffusion_pytorch_model.safetensors"
ONE_FILE = "comfyui/tiny-red.safetensors"
TO_Q = "transformer.blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shared_adapter(tmp_path_factory.mktemp("sound") / "adapter")
    write_card(folder, make_card(folder, "someone/tiny-red", licence="apache-2.0"))
    return folder


def write(name: str, data: bytes) -> Plant:
    def plant(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)

    return plant


def in_text(name: str, old: str, new: str) -> Plant:
    def plant(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return plant


def cut_short(folder: Path) -> None:
    (folder / LORA).write_bytes((folder / LORA).read_bytes()[:-40])


def link_outside(folder: Path) -> None:
    (folder.parent / "outside.png").write_bytes(picture())
    os.symlink(folder.parent / "outside.png", folder / "samples" / "link.png")


def flipped(name: str) -> Plant:
    """One bit, near the end of the tensors."""

    def plant(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-9] ^= 1
        (folder / name).write_bytes(data)

    return plant


def older_head(folder: Path) -> None:
    """A head whose own file says neither its hash nor its config, with another number of attention heads."""
    in_tensors(HEAD, len, diffusion_nft_alpha_head="", **NO_HASH)(folder)
    in_json("alpha_head/config.json", heads=4)(folder)


def pipe_in_place_of(name: str) -> Plant:
    def plant(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return plant


_NINE_TIMES = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 12))
BILLION = f"x0: &x0 [lol]\n{_NINE_TIMES}license: *x11\n"
UNSCALED = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 8})
NO_HASH = {"modelspec.hash_sha256": ""}
HUGE_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (50_000).to_bytes(4, "big") * 2 + b"\x08\2\0\0\0" + b"x" * 40
DEEP = b'{"a":' * 900 + b"1" + b"}" * 900
PLANTED: dict[str, tuple[Plant, str, str]] = {  # what: (plant, the line's file, what it says)
    "no LoRA": (lambda f: (f / LORA).unlink(), LORA, "is missing"),
    "no config": (lambda f: (f / "nft_config.json").unlink(), "nft_config.json", "has no nft_config.json"),
    "no head": (lambda f: shutil.rmtree(f / "alpha_head"), "alpha_head", "there is no alpha head"),
    "no file for ComfyUI": (lambda f: (f / ONE_FILE).unlink(), ONE_FILE, "is missing, so ComfyUI finds nothing"),
    "no card": (lambda f: (f / "README.md").unlink(), "README.md", "is missing: nobody can tell"),
    "LoRA cut short": (cut_short, LORA, "is truncated or damaged"),
    "wrong shape": (
        in_tensors(LORA, lambda t: t.update({f"{TO_Q}.lora_A.weight": torch.ones(3, 32)})),
        LORA,
        "A is of rank 3, B of rank 4",
    ),
    "half a pair": (in_tensors(LORA, lambda t: t.pop(f"{TO_Q}.lora_B.weight")), LORA, "but no lora_B"),
    "NaN": (in_tensors(LORA, lambda t: t[f"{TO_Q}.lora_A.weight"].fill_(float("nan"))), LORA, "are NaN or infinite"),
    "wrong hash": (in_tensors(LORA, lambda t: t[f"{TO_Q}.lora_A.weight"].mul_(2)), LORA, "have another hash than the"),
    "scale not baked": (
        in_tensors(LORA, lambda t: None, lora_adapter_metadata=UNSCALED),
        LORA,
        "the LoRA's scale is not baked into lora_B",
    ),
    "a text encoder's layer": (
        in_tensors(LORA, lambda t: t.update({"text_encoder.x.lora_A.weight": torch.ones(4, 4)})),
        LORA,
        "belongs to a text encoder",
    ),
    "another LoRA for ComfyUI": (
        in_tensors(ONE_FILE, lambda t: t[f"{TO_Q}.lora_B.weight"].mul_(2), **NO_HASH),
        ONE_FILE,
        "1 tensors are not those of pytorch_lora_weights",
    ),
    "a bit of the file for ComfyUI flipped": (flipped(ONE_FILE), ONE_FILE, "its tensors have another hash"),
    "a bit of the LoRA flipped": (flipped(LORA), LORA, "its tensors have another hash"),
    "a bit of the head flipped": (flipped(HEAD), HEAD, "its tensors have another hash"),
    "no head config for ComfyUI": (
        in_tensors(ONE_FILE, len, diffusion_nft_alpha_head=""),
        ONE_FILE,
        "diffusion_nft_alpha_head in the header is not valid JSON",
    ),
    "no config for ComfyUI": (in_tensors(ONE_FILE, len, diffusion_nft=""), ONE_FILE, "nodes do not know it"),
    "another head config": (
        in_json("alpha_head/config.json", heads=4),
        "alpha_head/config.json",
        "is another one than in the header of",
    ),
    "another head config in older files": (older_head, ONE_FILE, "its alpha head is built in another way"),
    "a huge picture": (write("samples/0-0.png", HUGE_PNG), "samples/0-0.png", "has 2,500,000,000 pixels"),
    "JSON of many levels": (write("nft_config.json", DEEP), "nft_config.json", "in more than 64 levels"),
    "a number of many digits": (
        in_text("run_report.json", '"seed": 0', '"seed": ' + "9" * 400),
        "run_report.json",
        "a whole number of 400 digits",
    ),
    "a number beyond floats": (
        in_text("nft_config.json", '"strength": 1.5', '"strength": 1e999'),
        "nft_config.json",
        "it holds the number 1e999, which is too large",
    ),
    "half a character": (
        in_text("nft_config.json", "the object is red", "the object is \\ud800 red"),
        "nft_config.json",
        "is not valid JSON",
    ),
    "a gallery that is a number": (
        in_text("README.md", "widget:\n", "widget: 7\nmore:\n"),
        "README.md",
        "its gallery names no text",
    ),
    "a licence of gigabytes": (
        in_text("README.md", "license: apache-2.0\n", BILLION),
        "README.md",
        "its metadata has no license",
    ),
    "a pipe": (pipe_in_place_of(LORA), LORA, "it is no plain file"),
    "a config that is a pipe": (pipe_in_place_of("alpha_head/config.json"), "alpha_head/config.json", "it is no plain"),
    "a LoRA of ten gigabytes": (lambda f: os.truncate(f / LORA, 10 * 2**30), LORA, "is truncated or damaged"),
    "another config in a header": (
        in_json("nft_config.json", strength=2.0),
        LORA,
        "its header holds another config than nft_config.json",
    ),
    "a second file for ComfyUI": (
        lambda f: shutil.copy(f / ONE_FILE, f / "comfyui" / "old.safetensors"),
        "comfyui/old.safetensors",
        "is another file than comfyui/tiny-red.safetensors",
    ),
    "head of another width": (
        in_json("alpha_head/config.json", feature_dim=64),
        HEAD,
        "has shape",
    ),
    "NaN in the head": (
        in_tensors(HEAD, lambda t: next(iter(t.values())).fill_(float("inf"))),
        HEAD,
        "are NaN or infinite",
    ),
    "absurd tilt": (
        in_json("nft_config.json", tilt=500.0, beta=0.004),
        "nft_config.json",
        "tilt 500 times the recommended strength 1.5 is 750, expected at most 20",
    ),
    "beta and tilt disagree": (in_json("nft_config.json", tilt=3.0), "nft_config.json", "do not belong together"),
    "licence missing": (in_json("nft_config.json", licence=...), "nft_config.json", "licence is missing"),
    "licence unknown": (in_json("nft_config.json", licence="unknown"), "nft_config.json", "licence is unknown"),
    "licence missing in the card": (
        in_text("README.md", "license: apache-2.0\n", ""),
        "README.md",
        "its metadata has no license",
    ),
    "another base model in the card": (
        in_text("README.md", "base_model: someone/tiny-sd3", "base_model: someone/else"),
        "README.md",
        "its base_model is 'someone/else', the config's 'someone/tiny-sd3'",
    ),
    "a card without metadata": (write("README.md", b"# hello"), "README.md", "has no metadata that can be read"),
    "the name leaves the folder": (
        in_json("nft_config.json", name="../../etc/x"),
        "nft_config.json",
        "name is '../../etc/x', expected a plain name",
    ),
    "a sample leaves the folder": (
        in_text("run_report.json", "samples/0-0.png", "samples/../../x.png"),
        "run_report.json",
        "expected a picture inside the folder",
    ),
    "a sample that is not there": (
        lambda f: (f / "samples" / "0-1.png").unlink(),
        "run_report.json",
        "names the picture samples/0-1.png, which is not there",
    ),
    "a link to the outside": (link_outside, "samples/link.png", "is a link to something outside"),
    "a pickle": (
        write("pytorch_lora_weights.bin", b"x"),
        "pytorch_lora_weights.bin",
        "is a pickle, which can run code",
    ),
    "a pickle under another name": (
        write(LORA, b"PK\x03\x04" + b"x" * 50),
        LORA,
        "is a pickle (a torch.save file under another name)",
    ),
    "a script": (write("run.py", b"print(1)"), "run.py", "is no part of an adapter"),
    "no picture": (write("samples/0-0.png", b"GIF89a"), "samples/0-0.png", "is no PNG, whatever its name says"),
    "an empty file": (write("plots/strip.png", b""), "plots/strip.png", "is empty"),
    "a huge text": (write("run_report.json", b" " * 2_000_000), "run_report.json", "is 2,000,000 bytes long, at most"),
    "an unknown version": (in_json("nft_config.json", format_version=9), "nft_config.json", "format_version is 9"),
    "a local path": (
        in_json("nft_config.json", training={"data": "/" + "home/anna/pictures"}),
        "nft_config.json",
        "holds the local path",
    ),
    "a token": (
        in_text("README.md", "## Limits", "hf_" + "abcdefghijklmnopqrstuvwxyz"),
        "README.md",
        "holds a Hugging Face token (hf_a...)",
    ),
}


def test_a_sound_adapter_has_no_fault(sound: Path) -> None:
    assert verify(sound) == []


def test_pictures_that_a_killed_writer_left_aside_are_read(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(sound, folder)
    os.rename(folder / "samples", _sibling(folder / "samples", "old"))
    assert verify(folder) == []


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_fault_is_found_in_one_line_that_says_what_to_do(what: str, sound: Path, tmp_path: Path) -> None:
    plant, where, phrase = PLANTED[what]
    folder = tmp_path / "adapter"
    shutil.copytree(sound, folder)
    plant(folder)
    found = [fault for fault in verify(folder) if fault.where == where and phrase in fault.what]
    assert found, [str(fault) for fault in verify(folder)]
    line = str(found[0])
    assert "\n" not in line and found[0].advice and len(found[0].advice) > 8 and line.endswith(found[0].advice)


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_ships_may_be_given_to_others(name: str) -> None:
    assert verify(name, card=False) == []


def test_the_tilt_of_a_policy_is_no_limit(tmp_path: Path) -> None:
    """It adds up over the rounds of an online run, and strength 1 is the trained model whatever it is."""
    folder = shared_adapter(tmp_path / "a", light_adapter("policy", tilt=1000.0, beta=0.002))
    assert verify(folder, card=False) == []


def test_a_name_that_no_terminal_can_print(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(sound, folder)
    (folder / os.fsdecode(b"odd-\xff.txt")).write_bytes(b"x")
    (fault,) = verify(folder)
    assert "is no part of an adapter" in str(fault) and str(fault).encode()


def test_all_faults_come_at_once(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(sound, folder)
    for what in ("a script", "NaN", "licence missing in the card", "a sample that is not there"):
        PLANTED[what][0](folder)
    lines = "\n".join(map(str, verify(folder)))
    assert all(PLANTED[what][2] in lines for what in ("a script", "NaN", "licence missing in the card"))


def test_the_head_of_another_model(tmp_path: Path) -> None:
    from dataclasses import replace

    from helpers.adapters import random_head

    folder = shared_adapter(tmp_path / "a", replace(light_adapter(), head=random_head(feature_dim=64)))
    (fault,) = verify(folder, card=False)
    assert "feature_dim is 64, but the LoRA's layers are 32 wide" in str(fault)


def test_a_repository_on_the_hub(sound: Path, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    push(sound, "someone/tiny-red", licence="apache-2.0", pause=0)
    assert verify("someone/tiny-red") == []
    repo = hub.repos["someone/tiny-red"]
    hub.commit(repo, "main", {**hub.files("someone/tiny-red"), "evil.pt": b"x", "nft_config.json": b"{"})
    lines = [str(fault) for fault in verify("someone/tiny-red")]
    assert any(line.startswith("evil.pt: is a pickle") for line in lines)
    assert any("is not valid JSON" in line for line in lines)
    assert not [path for _, path in hub.requests if path.endswith("evil.pt")]  # listed, never fetched
    with pytest.raises(AdapterError, match="there is no such repository"):
        verify("someone/nothing")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    lines = [str(fault) for fault in verify("someone/tiny-red")]
    assert lines and not any(line.startswith("evil.pt") for line in lines)  # of the cache, where it never came


def test_against_a_base_model_in_half_of_its_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held, load = [], DiffusionNFTPipeline.from_pretrained

    def loaded(*args: Any, **kwargs: Any) -> Any:
        pipe = load(*args, **kwargs)
        held.append(pipe.transformer.dtype)
        return pipe

    monkeypatch.setattr(DiffusionNFTPipeline, "from_pretrained", loaded)
    command = ["verify", str(shipped_adapter("shapes-follow")), "--no-card", "--base"]
    assert main([*command, "shapes"]) == 0 and main([*command, "emoji"]) == 1
    assert held == [torch.bfloat16, torch.bfloat16]
    assert "name the base model it was trained on" in capsys.readouterr().out
