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
from helpers.repository import ROOT

PAGE = ROOT / "docs" / "comfyui.md"
BEGIN, END = "<!-- nodes -->\n", "<!-- end of nodes -->\n"


def page(nodes: Iterable[Any]) -> str:
    """The page as it should be: its text as it is, with the table of these node classes made anew."""
    schemas = [node.define_schema() for node in nodes]
    rows = "".join(f"| {schema.display_name} | {schema.description} |\n" for schema in schemas)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}| node | what it does |\n|---|---|\n{rows}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patched, tempfile.TemporaryDirectory() as folder:
        fake_comfyui.install(patched, Path(folder))
        from nft_pipeline.comfy_nodes.nodes import NODES

        PAGE.write_text(page(NODES), encoding="utf-8")
