"""Presets in the menu of a node, in a browser on a real server; see test_real.py for COMFYUI_PATH."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.comfyui_page import CHROMIUM, READY, browser, comfyui_server, open_template, put_into_custom_nodes

CHECKOUTS = [Path(path) for path in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if path]
pytestmark = [
    pytest.mark.skipif(not CHECKOUTS, reason="COMFYUI_PATH does not name a checkout of ComfyUI"),
    pytest.mark.skipif(
        CHROMIUM is None or importlib.util.find_spec("playwright") is None,
        reason="needs chromium on the PATH and pip install playwright",
    ),
]
# The functions of the page, on the node Reward Guidance of the template.
SCRIPT = """async () => {
    const presets = await import("/extensions/diffusion-nft/presets.js")
    const node = app.graph.nodes.find((node) => node.type === "NFTRewardGuidance")
    const widget = (name) => node.widgets.find((widget) => widget.name === name)
    const values = () => Object.fromEntries(node.widgets.map((widget) => [widget.name, widget.value]))
    const offered = () => {
        const options = []
        node.getExtraMenuOptions(app.canvas, options)
        return options.filter((option) => option).map((option) => option.content)
    }
    const seen = { before: offered() }
    widget("strength").value = 1.75
    widget("cap").value = 0.25
    seen.saved = values()
    await presets.save(node, "strong")
    seen.after = offered()
    widget("strength").value = -1
    widget("cap").value = 0
    presets.apply(node, "strong")
    seen.loaded = values()
    return seen
}"""


@pytest.fixture(params=CHECKOUTS or [None], ids=lambda path: "none" if path is None else path.name)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    put_into_custom_nodes(tmp_path)
    with comfyui_server(request.param, tmp_path) as address, browser() as opened:
        yield address, opened, tmp_path


def test_what_is_saved_under_a_name_is_set_again_and_stands_in_the_user_folder(site: Any) -> None:
    address, opened, folder = site
    page = open_template(opened, address, READY)
    seen = page.evaluate(SCRIPT)
    assert "Save preset ..." in seen["before"] and "Load preset" not in seen["before"]
    assert {"Load preset", "Delete preset"} <= set(seen["after"])
    assert seen["loaded"] == seen["saved"] and seen["loaded"]["strength"] == 1.75
    stored = json.loads((folder / "user" / "default" / "diffusion-nft" / "presets.json").read_text())
    assert stored["strong"] == seen["saved"]
