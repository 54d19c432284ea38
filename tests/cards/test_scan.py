"""Private things are found in every kind of file, and ordinary texts are let through."""

from __future__ import annotations

import getpass

import pytest
import torch

from helpers.cards import picture
from nft_pipeline.files.strict import safetensors_bytes
from nft_pipeline.hub_cards.scan import private_faults

# Put together here, so that no file of this repository holds one.
HOME = "/" + "home/anna/models/sd3"
TOKEN = "hf_" + "abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (HOME, "the local path " + HOME),
        ("C:" + "\\Users\\anna\\x.safetensors", "the local path C:"),
        ("file:" + "///x/y", "the local path file:"),
        ("~/" + "models/sd3", "the local path ~/"),
        (TOKEN, "a Hugging Face token (hf_a...)"),
        ("sk-" + "a" * 30, "an API key"),
        ("ghp_" + "a" * 36, "a GitHub token"),
        ("AKIA" + "A" * 16, "an AWS key"),
        ("-----BEGIN " + "PRIVATE KEY-----", "a private key"),
    ],
)
@pytest.mark.parametrize("kind", ["json", "safetensors", "png"])
def test_it_is_found(text: str, what: str, kind: str) -> None:
    data = {
        "json": lambda: f'{{"x": "{text}"}}'.encode(),
        "safetensors": lambda: safetensors_bytes({"a": torch.zeros(1)}, {"note": text}),
        "png": lambda: picture(workflow=f"loads {text}"),
    }[kind]()
    faults = private_faults({f"x.{kind}": data})
    assert len(faults) == 1 and faults[0][0] == f"x.{kind}" and what in faults[0][1]
    assert TOKEN not in faults[0][1]


def test_ordinary_texts_are_let_through() -> None:
    text = (
        "https://huggingface.co/home/x and comfyui/x.safetensors and ComfyUI/models/loras, 3/4 of data/set, "
        "plots/strip.png, a/home/b, hf_hub, sk-learn, ~ 5, and/or, n/a"
    )
    assert private_faults({"README.md": text.encode()}) == []


def test_the_accounts_name_is_private_except_as_the_repositorys_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "annalena")
    files = {"a.json": b'{"by": "annalena"}', "b.json": b'{"by": "annalenas-model"}'}
    assert private_faults(files) == [("a.json", "holds the name of your account on this machine, annalena")]
    assert private_faults(files, owner="annalena") == []
    assert private_faults({"README.md": b'load_lora_weights("annalena/red")'}) == []
    monkeypatch.setattr(getpass, "getuser", lambda: "root")
    assert private_faults({"a.json": b"the root of it"}) == []


def test_damaged_files_are_for_others_to_report() -> None:
    assert private_faults({"a.safetensors": b"\xff" * 30, "b.png": b"no picture", "c.safetensors": b""}) == []
