"""The table of nodes in docs/comfyui.md, made from what the nodes say of themselves, on the fake of ComfyUI.

    make pages

writes it again. A test compares the two.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from helpers import fake_comfyui
from helpers.made import with_parts
from helpers.repository import ROOT

PAGE = ROOT / "docs" / "comfyui.md"


def page(nodes: Iterable[Any]) -> str:
    """The page as it should be: its text as it is, with the table of these node classes made anew."""
    schemas = [node.define_schema() for node in nodes]
    rows = "".join(f"| {schema.display_name} | {schema.description} |\n" for schema in schemas)
    return with_parts(PAGE, nodes=f"| node | what it does |\n|---|---|\n{rows}")


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory() as folder:
        fake_comfyui.install(patched, Path(folder))
        from nft_pipeline.comfy_nodes.nodes import NODES

        PAGE.write_text(page(NODES), encoding="utf-8")
