"""docs/adapter_format.md says what the code reads and writes, key by key."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, fields
from typing import Any

import pytest
from safetensors import safe_open

from helpers.adapters import tiny_adapter
from helpers.repository import ROOT
from nft_pipeline.adapters import names
from nft_pipeline.adapters.alpha_head import AlphaHeadConfig
from nft_pipeline.adapters.config import REWARD_KEYS, AdapterConfig, BaseModel
from nft_pipeline.adapters.write import adapter_files
from nft_pipeline.dial.measured import Dial, TiltMap
from nft_pipeline.files.versions import Part
from nft_pipeline.hub_cards import report

PAGE = (ROOT / "docs" / "adapter_format.md").read_text("utf-8")


def table(before: str) -> dict[str, list[str]]:
    """The rows of the first table behind a text: first cell without its backticks, and the other cells."""
    behind = PAGE.split(before, 1)[1].split("\n|", 1)[1]
    lines = ("|" + behind).split("\n\n", 1)[0].splitlines()[2:]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {row[0].strip("`"): row[1:] for row in rows}


def default_of(kind: Any, name: str) -> str:
    entry = next(entry for entry in fields(kind) if entry.name == name)
    if entry.default_factory is not MISSING:
        return f"`{json.dumps(entry.default_factory())}`"
    return "required" if entry.default is MISSING else f"`{json.dumps(entry.default)}`"


def test_the_fields_of_the_config() -> None:
    rows = table("## nft_config.json\n")
    assert list(rows) == AdapterConfig.names(), "docs/adapter_format.md has a row for each field, in their order"
    for name, (expected, default, _) in rows.items():
        assert expected == AdapterConfig.checks[name].expected, name
        assert default == ("required" if name == "format_version" else default_of(AdapterConfig, name)), name
    inside = table("`base_model` has exactly these keys:")
    assert {name: row[0] for name, row in inside.items()} == {
        name: check.expected for name, check in BaseModel.checks.items()
    }
    assert list(inside) == BaseModel.names()
    assert f"`reward` has the keys `{REWARD_KEYS[0]}`, `{REWARD_KEYS[1]}` and `{REWARD_KEYS[2]}`" in PAGE


@pytest.mark.parametrize(
    ("before", "part"),
    [
        ("### The dial\n", Dial),
        ("An entry of `maps`", TiltMap),
        ("## run_report.json\n", report.RunReport),
        ("An entry of `rewards`", report.Curve),
        ("An entry of `points`", report.Point),
        ("An entry of `alpha`", report.Alpha),
        ("An entry of `samples`", report.Sample),
        ("`hacking`:\n", report.Hacking),
        ("`trained`, of which", report.Trained),
    ],
)
def test_the_fields_of_the_report(before: str, part: type[Part]) -> None:
    rows = table(before)
    assert {name: row[0] for name, row in rows.items()} == {name: check.expected for name, check in part.checks.items()}


def test_the_fields_of_the_head() -> None:
    rows = table("## The alpha head\n")
    assert list(rows) == [entry.name for entry in fields(AlphaHeadConfig)]
    assert all(row[0] == default_of(AlphaHeadConfig, name) for name, row in rows.items())


def test_the_files_and_their_headers(tmp_path: Any) -> None:
    adapter = tiny_adapter()
    files = adapter_files(adapter)
    listed = [path.replace("<name>", adapter.config.name) for path in table("## The files\n")]
    assert set(files) == set(listed[: len(files)])
    headers = {}
    for path, data in files.items():
        if path.endswith(".safetensors"):
            (tmp_path / "file").write_bytes(data)
            with safe_open(tmp_path / "file", "pt") as file:
                headers[path] = set(file.metadata())
    lora = set(table("The header of this file holds texts."))
    assert headers[names.LORA_FILE] == lora
    single = headers[f"{names.COMFYUI_FOLDER}/{adapter.config.name}.safetensors"]
    assert single == lora - {names.LORA_METADATA_KEY} | {names.HEAD_CONFIG_HEADER_KEY}
    assert f"`{names.HEAD_CONFIG_HEADER_KEY}`" in PAGE and f"`{names.HEAD_PREFIX}`" in PAGE


def test_the_limits() -> None:
    large, small = names.MAX_LORA_BYTES // 2**30, names.MAX_HEAD_BYTES // 2**30
    assert f"a LoRA of more than {large} GiB, a head of more than {small} GiB" in PAGE
    assert names.MAX_CONFIG_BYTES == 1_000_000 and "a JSON file of more than 1 MB" in PAGE
