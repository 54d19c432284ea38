"""docs/api.md: its tables have the names and defaults of the signatures, and no public name is missing."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from typing import Any

import pytest

import nft_pipeline
from helpers.repository import ROOT
from nft_pipeline import DiffusionNFTPipeline, NFTStats
from nft_pipeline.call.guided_call import GUIDANCE_ARGUMENTS

PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
CALLS = re.findall(r"^### `([\w.]+)`\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
NOTHING = "nothing"


def table(text: str) -> list[list[str]]:
    """The cells of the first table's rows, without its head."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def found(name: str) -> Any:
    """The object a heading names."""
    path = name if name.startswith("nft_pipeline.") else f"nft_pipeline.{name}"
    parts = path.split(".")
    value: Any = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], start=2):
        value = getattr(value, part, None) or importlib.import_module(".".join(parts[:i]))
    return value


def said_default(cell: str) -> Any:
    if cell in ("", "required"):
        return NOTHING
    return ast.literal_eval(cell.strip("`"))


def arguments_of(name: str) -> dict[str, Any]:
    if name == "DiffusionNFTPipeline.__call__":
        return {argument: default for argument, (default, _) in GUIDANCE_ARGUMENTS.items()}
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return {
        stars.get(parameter.kind, "") + key: NOTHING if parameter.default is parameter.empty else parameter.default
        for key, parameter in inspect.signature(found(name)).parameters.items()
        if key != "self"
    }


@pytest.mark.parametrize(("name", "text"), CALLS, ids=[name for name, _ in CALLS])
def test_tables_have_the_names_and_defaults_of_the_signatures(name: str, text: str) -> None:
    said = {row[0].strip("`"): said_default(row[1]) for row in table(text)}
    assert said == arguments_of(name) and list(said) == list(arguments_of(name))
    assert all(row[-1] for row in table(text)), "every argument is explained"


def test_every_public_name_is_on_the_page() -> None:
    names = [name for name in vars(DiffusionNFTPipeline) if not name.startswith("_")]
    names += [name for name in DiffusionNFTPipeline.__annotations__ if name.startswith("nft_")]
    names += [name for name in vars(NFTStats) if not name.startswith("_")]
    missing = [name for name in [*names, *nft_pipeline.__all__] if not re.search(rf"\b{name}\b", PAGE)]
    assert not missing
    described = {name for name, _ in CALLS}
    methods = {name for name in vars(DiffusionNFTPipeline) if inspect.isroutine(getattr(DiffusionNFTPipeline, name))}
    public = {f"DiffusionNFTPipeline.{name}" for name in methods if not name.startswith("_")}
    assert public - described == {
        "DiffusionNFTPipeline.to_json_string",
        "DiffusionNFTPipeline.register_to_config",
    }


def test_the_table_of_the_record_has_its_fields() -> None:
    text = PAGE[PAGE.index("## What happened") : PAGE.index("### `NFTStats.plot`")]
    assert [row[0].strip("`") for row in table(text)] == [field.name for field in dataclasses.fields(NFTStats)]


def test_the_errors_are_what_it_says() -> None:
    for row in table(PAGE[PAGE.index("## Errors") :]):
        assert issubclass(getattr(nft_pipeline, row[0].strip("`")), ValueError)
