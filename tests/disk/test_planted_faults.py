"""A sound adapter's folder, one thing wrong with it, and the error that says which."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from helpers.adapters import assert_same, tiny_adapter, tiny_sd3
from helpers.plants import Plant, in_json, in_tensors
from nft_pipeline.adapter import AdapterError, read_adapter, write_adapter

LORA = "pytorch_lora_weights.safetensors"
HEAD = "alpha_head/diffusion_pytorch_model.safetensors"
TO_Q = "transformer.transformer_blocks.0.attn.to_q"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One sound folder of each kind; tests plant their fault in a copy (quicker than writing anew)."""
    model, folder = tiny_sd3(), tmp_path_factory.mktemp("sound")
    folders = {kind: write_adapter(folder / kind, tiny_adapter(model, kind)) for kind in ("positive", "policy")}
    for kind in folders:
        assert_same(read_adapter(folders[kind]), tiny_adapter(model, kind))
    return folders


def in_header(**changed: Any) -> Plant:
    """Change what the LoRA's header tells diffusers."""
    said = {"transformer.r": 4, "transformer.lora_alpha": 4, **{f"transformer.{k}": v for k, v in changed.items()}}
    return in_tensors(LORA, lambda tensors: None, lora_adapter_metadata=json.dumps(said))


def in_bytes(name: str, change: Callable[[bytes], bytes]) -> Plant:
    def plant(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return plant


def removed(name: str) -> Plant:
    def plant(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return plant


def pickled(name: str, **how: Any) -> Plant:
    def plant(folder: Path) -> None:
        torch.save({"w": torch.ones(3)}, folder / name, **how)

    return plant


def sparse(name: str, size: int) -> Plant:
    """A file that claims to be huge without taking the space."""

    def plant(folder: Path) -> None:
        os.truncate(folder / name, size)

    return plant


def peft_folder(folder: Path) -> None:
    for path in list(folder.iterdir()):
        removed(path.name)(folder)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(safetensors.torch.save({"x": torch.ones(1)}))


def with_nan(tensors: dict[str, Any], key: str, value: float = float("nan")) -> None:
    tensors[key].view(-1)[0] = value


def renamed(tensors: dict[str, Any], old: str, new: str) -> None:
    for key in list(tensors):
        if key.startswith(old):
            tensors[key.replace(old, new, 1)] = tensors.pop(key)


def kohya(tensors: dict[str, Any]) -> None:
    for key in list(tensors):
        module, _, side = key.removeprefix("transformer.").removesuffix(".weight").rpartition(".")
        name = "lora_unet_" + module.replace(".", "_")
        tensors[f"{name}.lora_{'down' if side == 'lora_A' else 'up'}.weight"] = tensors.pop(key)


def other_rank(tensors: dict[str, Any], modules: str, sides: str) -> None:
    for key in list(tensors):
        if key.startswith(modules) and ".lora_A." in key and "A" in sides:
            tensors[key] = torch.ones(3, *tensors[key].shape[1:])
        if key.startswith(modules) and ".lora_B." in key and "B" in sides:
            tensors[key] = torch.ones(tensors[key].shape[0], 3, *tensors[key].shape[2:])


def to(tensors: dict[str, Any], key: str, value: Any) -> None:
    tensors[key] = value


POSITIVE: dict[str, tuple[Plant, list[str]]] = {
    # whole files
    "no config": (removed("nft_config.json"), ["has no nft_config.json", f"found alpha_head, comfyui, {LORA}"]),
    "no LoRA": (removed(LORA), [f"{LORA} is missing"]),
    "no head folder": (removed("alpha_head"), ["kind is positive but there is no alpha head"]),
    "no head config": (removed("alpha_head/config.json"), ["alpha_head/config.json is missing"]),
    "no head tensors": (removed(HEAD), [f"{HEAD} is missing"]),
    "a peft folder": (peft_folder, ["has no nft_config.json", "looks like a peft folder", "kind and beta"]),
    "an empty folder": (lambda f: [removed(p.name)(f) for p in list(f.iterdir())] and None, ["found nothing"]),
    "a folder for a file": (lambda f: (removed(LORA)(f), (f / LORA).mkdir())[1], [LORA, "cannot be read"]),
    # bytes
    "config cut off": (in_bytes("nft_config.json", lambda d: d[:100]), ["nft_config.json is not valid JSON"]),
    "config too long": (in_bytes("nft_config.json", lambda d: d + b" " * 10**6), ["expected at most 1,000,000"]),
    "LoRA empty": (in_bytes(LORA, lambda d: b""), [LORA, "truncated", "it has 0 bytes"]),
    "LoRA cut in the header": (in_bytes(LORA, lambda d: d[:50]), [LORA, "truncated", "it has 50 bytes"]),
    "LoRA cut in the tensors": (in_bytes(LORA, lambda d: d[:-1]), [LORA, "truncated", "its header promises"]),
    "LoRA with bytes behind": (in_bytes(LORA, lambda d: d + b"x"), [LORA, "its header promises"]),
    "LoRA header broken": (in_bytes(LORA, lambda d: d[:8] + b"#" + d[9:]), [LORA, "header is not readable"]),
    "LoRA header of another kind": (
        in_bytes(LORA, lambda d: (9).to_bytes(8, "little") + b'{"a": 1} '),
        [LORA, "header is not readable"],
    ),
    "LoRA tensors overlap": (
        in_bytes(LORA, lambda d: d.replace(b'"data_offsets":[0,', b'"data_offsets":[4,')),
        [LORA, "is damaged"],
    ),
    "LoRA a text": (in_bytes(LORA, lambda d: b"<html>404 Not Found</html>"), [LORA, "no safetensors file"]),
    "LoRA a pickle (zip)": (pickled(LORA), [LORA, "is a pickle", "can run code", "safetensors"]),
    "LoRA a pickle (old)": (pickled(LORA, _use_new_zipfile_serialization=False), [LORA, "is a pickle"]),
    "head a pickle": (pickled(HEAD), [HEAD, "is a pickle"]),
    "LoRA a Git LFS pointer": (
        in_bytes(LORA, lambda d: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
        [LORA, "is a Git LFS pointer", "git lfs pull"],
    ),
    "LoRA of absurd size": (sparse(LORA, 17 * 2**30), [LORA, "expected at most 17,179,869,184"]),
    "head of absurd size": (sparse(HEAD, 3 * 2**30), [HEAD, "expected at most 2,147,483,648"]),
    # the config, in place (all its fields: test_adapter_config)
    "version from the future": (in_json("nft_config.json", format_version=7), ["format_version is 7", "update"]),
    "misspelt field": (in_json("nft_config.json", strenght=2.0), ["strenght is unknown; did you mean strength?"]),
    "missing field": (in_json("nft_config.json", beta=...), ["beta is missing"]),
    "tilt of another beta": (in_json("nft_config.json", tilt=20.0), ["tilt * beta is 20, expected 2"]),
    "name leaves the folder": (in_json("nft_config.json", name="../../x"), ["name is '../../x'", "without slashes"]),
    "positive called a policy": (
        in_json("nft_config.json", kind="policy", base_rate=None),
        ["kind is policy but there is an alpha head", "count twice"],
    ),
    "rank of another LoRA": (in_json("nft_config.json", rank=8), ["is of rank 4, the config says rank 8", "r = 4"]),
    "component of another LoRA": (
        in_json("nft_config.json", component="unet"),
        ['changes "transformer", but the config\'s component is "unet"'],
    ),
    # the LoRA
    "scale not baked": (
        in_header(lora_alpha=8),
        ["lora_alpha is 8 and r is 4", "not baked", "expected lora_alpha == r"],
    ),
    "scale not said": (in_tensors(LORA, len, lora_adapter_metadata=""), ["has no lora_adapter_metadata"]),
    "scale not JSON": (
        in_tensors(LORA, len, lora_adapter_metadata="{"),
        ["lora_adapter_metadata in the header is not"],
    ),
    "format not said": (in_tensors(LORA, len, format=""), ['format is None, expected "pt"']),
    "scale by layer": (in_header(alpha_pattern={"to_q": 8}), ['alpha_pattern = {"to_q": 8}', "plain LoRA"]),
    "DoRA by header": (in_header(use_dora=True), ["use_dora = true"]),
    "DoRA": (
        in_tensors(LORA, lambda t: to(t, f"{TO_Q}.lora_magnitude_vector.weight", torch.ones(32))),
        ["lora_magnitude_vector", "belongs to a DoRA"],
    ),
    "no layer": (in_tensors(LORA, lambda t: t.clear()), ["there is no LoRA layer", "found 0 tensors"]),
    "half a pair": (
        in_tensors(LORA, lambda t: t.pop(f"{TO_Q}.lora_B.weight")),
        ["transformer_blocks.0.attn.to_q has lora_A but no lora_B", "incomplete"],
    ),
    "text encoder": (
        in_tensors(LORA, lambda t: to(t, "text_encoder.x.lora_A.weight", torch.ones(4, 8))),
        ["text_encoder.x.lora_A.weight belongs to a text encoder", "train the denoiser alone"],
    ),
    "scale tensors": (
        in_tensors(LORA, lambda t: to(t, f"{TO_Q}.alpha", torch.tensor(8.0))),
        [f"{TO_Q}.alpha is a scale tensor", "baked"],
    ),
    "kohya keys": (
        in_tensors(LORA, kohya),
        [
            'lora_unet_pos_embed_proj.lora_up.weight is unknown, expected "transformer.<module>.lora_A.weight"',
            "no LoRA layer",
        ],
    ),
    "peft keys": (
        in_tensors(LORA, lambda t: renamed(t, "transformer.", "base_model.model.")),
        ['changes "base_model", but the config\'s component is "transformer"'],
    ),
    "one layer of another rank": (in_tensors(LORA, lambda t: other_rank(t, TO_Q, "AB")), ["to_q is of rank 3"]),
    "A and B of two ranks": (in_tensors(LORA, lambda t: other_rank(t, TO_Q, "B")), ["A is of rank 4, B of rank 3"]),
    "a vector": (
        in_tensors(LORA, lambda t: to(t, f"{TO_Q}.lora_A.weight", torch.ones(4))),
        ["to_q has shapes A (4,)", "expected A (rank, in)"],
    ),
    "a wide convolution in B": (
        in_tensors(LORA, lambda t: to(t, "transformer.pos_embed.proj.lora_B.weight", torch.ones(32, 4, 2, 2))),
        ["pos_embed.proj has shapes", "B 1 x 1"],
    ),
    "an empty side": (
        in_tensors(LORA, lambda t: to(t, f"{TO_Q}.lora_A.weight", torch.ones(4, 0))),
        ["to_q has shapes A (4, 0)", "a side is empty"],
    ),
    "NaN in the LoRA": (
        in_tensors(LORA, lambda t: with_nan(t, f"{TO_Q}.lora_B.weight")),
        [f"{TO_Q}.lora_B.weight holds 1 of 128 numbers that are NaN or infinite", "diverged"],
    ),
    "infinity in the LoRA": (
        in_tensors(LORA, lambda t: with_nan(t, f"{TO_Q}.lora_A.weight", float("-inf"))),
        [f"{TO_Q}.lora_A.weight holds 1 of 128"],
    ),
    "whole numbers in the LoRA": (
        in_tensors(LORA, lambda t: to(t, f"{TO_Q}.lora_A.weight", torch.ones(4, 32, dtype=torch.int8))),
        ["has dtype torch.int8, expected floating point"],
    ),
    # the head
    "NaN in the head": (in_tensors(HEAD, lambda t: with_nan(t, "queries")), [f"{HEAD}: queries holds 1 of 32"]),
    "head tensor missing": (in_tensors(HEAD, lambda t: t.pop("queries")), [f"{HEAD}: queries is missing"]),
    "head tensor too many": (
        in_tensors(HEAD, lambda t: to(t, "extra.weight", torch.ones(2))),
        [f"{HEAD}: extra.weight is unexpected"],
    ),
    "head for another width": (
        in_json("alpha_head/config.json", feature_dim=64),
        ["tokens_in.weight has shape (16, 32), expected (16, 64) from alpha_head/config.json"],
    ),
    "head config misspelt": (
        in_json("alpha_head/config.json", width=..., widht=16),
        ["alpha_head/config.json", "unknown keys ['widht']", "missing keys ['width']"],
    ),
    "head config absurd": (in_json("alpha_head/config.json", queries=10**9), ["queries is 1000000000"]),
    "head config absurdly deep": (in_json("alpha_head/config.json", layers=65536), ["layers is 65536", "at most 64"]),
    "head config absurdly wide": (in_json("alpha_head/config.json", width=65536), ["has shape", "65536"]),
    "head config cut off": (
        in_bytes("alpha_head/config.json", lambda d: d[:-5]),
        ["alpha_head/config.json is not valid JSON"],
    ),
}
POLICY: dict[str, tuple[Plant, list[str]]] = {
    "policy called positive": (
        in_json("nft_config.json", kind="positive"),
        ["kind is positive but there is no alpha head", "cannot guide"],
    ),
    "policy with a base rate": (in_json("nft_config.json", base_rate=0.3), ["base_rate is given for a policy"]),
}
FAULTS = {**{name: ("positive", *f) for name, f in POSITIVE.items()}, **{n: ("policy", *f) for n, f in POLICY.items()}}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_named(tmp_path: Path, sound: dict[str, Path], fault: str) -> None:
    kind, plant, phrases = FAULTS[fault]
    folder = shutil.copytree(sound[kind], tmp_path / "a")
    plant(folder)
    with pytest.raises(AdapterError) as caught:
        read_adapter(folder)
    text = str(caught.value)
    assert str(folder) in text
    for phrase in phrases:
        assert phrase in text


def test_there_are_at_least_thirty() -> None:
    assert len(FAULTS) >= 30


def test_faults_in_all_files_come_in_one_report(tmp_path: Path, sound: dict[str, Path]) -> None:
    folder = shutil.copytree(sound["positive"], tmp_path / "a")
    in_json("nft_config.json", licence="", strength=-3)(folder)
    in_bytes(LORA, lambda data: data[:-9])(folder)
    removed("alpha_head/config.json")(folder)
    in_tensors(HEAD, lambda tensors: None)(folder)
    with pytest.raises(AdapterError) as caught:
        read_adapter(folder)
    assert len(caught.value.faults) == 4
    for phrase in ("strength is -3", "licence is ''", f"{LORA} is truncated", "alpha_head/config.json is missing"):
        assert phrase in str(caught.value)
