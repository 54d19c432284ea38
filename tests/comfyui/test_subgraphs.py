"""The blueprints in subgraphs/: their links, and their nodes against the definitions, on a FAKE of ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import fake_comfyui as fake
from helpers.comfyui_world import World
from helpers.repository import ROOT

BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
CONTRACT = json.loads((ROOT / "tests" / "comfyui" / "contract.json").read_text())["nodes"]


def test_there_is_one() -> None:
    assert BLUEPRINTS


@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_its_nodes_are_as_they_are_defined_and_its_links_join_what_fits(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(tmp_path, fake.install(monkeypatch, tmp_path))
    ours = {node.define_schema().node_id: node.define_schema() for node in world.nodes.NODES}
    blueprint = json.loads(path.read_text(encoding="utf-8"))
    (outer,), (graph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert outer["type"] == graph["id"] and outer["title"] == graph["name"] == path.stem
    nodes: dict[int, Any] = {node["id"]: node for node in graph["nodes"]}
    nodes |= {-10: {"outputs": graph["inputs"]}, -20: {"inputs": graph["outputs"]}}
    for node in graph["nodes"]:
        name, inputs = node["type"], {entry["name"]: entry["type"] for entry in node["inputs"]}
        if name in ours:
            assert inputs == {entry.id: entry.io_type for entry in ours[name].inputs}, name
            assert [entry["type"] for entry in node["outputs"]] == [entry.io_type for entry in ours[name].outputs]
            widgets = [entry.id for entry in ours[name].inputs if "widget" in _entry(node, entry.id)]
            assert len(node["widgets_values"]) == len(widgets), name
        else:
            assert inputs == CONTRACT[name][0] and node["outputs"][0]["type"] == CONTRACT[name][1][0]
    for link in graph["links"]:
        start = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
        end = nodes[link["target_id"]]["inputs"][link["target_slot"]]
        assert start["type"] == end["type"] == link["type"]
        assert link["id"] in (start.get("links") or start.get("linkIds"))
        assert link["id"] in (end.get("linkIds") or [end.get("link")])
    for number, widget in outer["properties"]["proxyWidgets"]:
        assert "widget" in _entry(nodes[int(number)], widget)


def _entry(node: Any, name: str) -> Any:
    return next(entry for entry in node["inputs"] if entry["name"] == name)
