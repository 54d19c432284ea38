"""example_workflows: what stands in the files fits ComfyUI's nodes (contract.json) and ours, on the FAKE; and, where
COMFYUI_PATH names checkouts, each opens in a browser on a real server without a fault, and the ready one draws.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers import fake_comfyui as fake
from helpers.comfyui_contract import CONTRACT
from helpers.comfyui_page import (
    CHROMIUM,
    READY,
    TEMPLATES,
    browser,
    comfyui_server,
    get,
    open_template,
    pretend_to_have,
    put_into_custom_nodes,
    run_template,
)

CHECKOUTS = [Path(path) for path in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if path]
WIDGETS = {"COMBO", "INT", "FLOAT", "STRING"}
NAMES = [path.stem for path in TEMPLATES]


@pytest.fixture
def definitions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Of each node: inputs with their types, the types of its outputs, and what its widgets take."""
    fake.install(monkeypatch, tmp_path)
    from nft_pipeline.comfy_nodes import nodes

    nodes.host.offer_shipped_adapters()
    core = json.loads(CONTRACT.read_text())["nodes"]
    found: dict[str, Any] = {name: (inputs, outputs, {}) for name, (inputs, outputs) in core.items()}
    for node in nodes.NODES:
        schema = node.define_schema()
        inputs = {entry.id: entry.io_type for entry in schema.inputs}
        outputs = [entry.io_type for entry in schema.outputs]
        found[schema.node_id] = (inputs, outputs, {entry.id: entry.facts for entry in schema.inputs})
    return found


def read(name: str) -> Any:
    return json.loads(next(path for path in TEMPLATES if path.stem == name).read_text(encoding="utf-8"))


def nodes_of(workflow: Any) -> list[Any]:
    return [node for node in workflow["nodes"] if node["type"] != "MarkdownNote"]


def test_every_template_has_a_picture_of_modest_size() -> None:
    assert len(TEMPLATES) == 5
    for path in TEMPLATES:
        picture = path.with_suffix(".jpg")
        assert picture.stat().st_size < 250_000
        with Image.open(picture) as opened:
            assert opened.format == "JPEG" and opened.width >= 1000


@pytest.mark.parametrize("name", NAMES)
def test_every_node_has_the_inputs_outputs_and_widgets_of_its_definition(
    name: str, definitions: dict[str, Any]
) -> None:
    for node in nodes_of(read(name)):
        inputs, outputs, facts = definitions[node["type"]]
        assert {entry["name"]: entry["type"] for entry in node["inputs"]} == inputs, node["type"]
        assert [entry["type"] for entry in node["outputs"]] == outputs, node["type"]
        widgets = [key for key, kind in inputs.items() if kind in WIDGETS]
        assert {entry["name"] for entry in node["inputs"] if "widget" in entry} == set(widgets)
        if "seed" in widgets:
            widgets.insert(widgets.index("seed") + 1, "control after generate")
        assert len(node["widgets_values"]) == len(widgets), node["type"]
        for key, value in zip(widgets, node["widgets_values"], strict=True):
            options, low = facts.get(key, {}).get("options"), facts.get(key, {}).get("min")
            if options is not None and (key != "adapter" or name == READY):
                assert value in options, (node["type"], key)
            if low is not None:
                assert low <= value <= facts[key]["max"], (node["type"], key)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_from_an_output_to_an_input_of_its_type(name: str) -> None:
    workflow = read(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"]) and max(nodes) == workflow["last_node_id"]
    assert max(link[0] for link in workflow["links"]) == workflow["last_link_id"]
    for number, source, output, target, slot, kind in workflow["links"]:
        given, taken = nodes[source]["outputs"][output], nodes[target]["inputs"][slot]
        assert number in given["links"] and taken["link"] == number
        assert given["type"] == taken["type"] == kind
    ends = [link for node in nodes.values() for entry in node["outputs"] for link in entry["links"]]
    starts = [entry["link"] for node in nodes.values() for entry in node["inputs"] if entry["link"] is not None]
    assert sorted(ends) == sorted(starts) == sorted(link[0] for link in workflow["links"])
    open_inputs = {entry["name"] for node in nodes_of(workflow) for entry in node["inputs"]
                   if entry["link"] is None and "widget" not in entry}  # fmt: skip
    assert open_inputs <= {"schedule"}


@pytest.mark.parametrize("name", NAMES)
def test_a_note_says_what_to_do_and_every_model_file_has_its_address(name: str) -> None:
    workflow = read(name)
    (note,) = (node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    assert "strength" in note and "**Run**" in note
    for node in nodes_of(workflow):
        models = {model["name"]: model for model in node["properties"].get("models", [])}
        files = [str(value) for value in node["widgets_values"] if str(value).endswith(".safetensors")]
        assert node["type"].startswith("NFT") or files == list(models)
        for file, model in models.items():
            assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(file)
            assert file in note and f"models/{model['directory']}" in note


@pytest.fixture(scope="module", params=CHECKOUTS or [None], ids=lambda path: "none" if path is None else path.name)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The address of a server that has, by name, every file the templates ask for; and a browser."""
    if request.param is None:
        pytest.skip("COMFYUI_PATH does not name a checkout of ComfyUI")
    if CHROMIUM is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("needs chromium on the PATH and pip install playwright")
    folder = tmp_path_factory.mktemp("page")
    put_into_custom_nodes(folder)
    for name in NAMES:
        pretend_to_have(folder, read(name))
    with comfyui_server(request.param, folder) as address, browser() as opened:
        yield address, opened


def test_contract_and_templates_are_what_a_real_server_says(site: Any) -> None:
    address, _ = site
    (listed,) = get(f"{address}/workflow_templates").values()
    assert sorted(listed) == NAMES
    said = get(f"{address}/object_info")
    for name, (inputs, outputs) in json.loads(CONTRACT.read_text())["nodes"].items():
        groups = said[name]["input"]
        given = {**groups.get("required", {}), **groups.get("optional", {})}
        kinds = {key: "COMBO" if isinstance(kind[0], list) else kind[0] for key, kind in given.items()}
        assert kinds == inputs, name
        assert said[name]["output"][: len(outputs)] == outputs, name
    picture = urllib.request.urlopen(f"{address}/api/workflow_templates/diffusion-nft/{READY}.jpg").read()
    assert picture[:2] == b"\xff\xd8"


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_in_a_browser_with_no_red_node_and_no_dialog(name: str, site: Any) -> None:
    address, opened = site
    page = open_template(opened, address, name)
    unknown = "app.graph.nodes.filter(n => !(n.type in LiteGraph.registered_node_types)).map(n => n.type)"
    assert page.evaluate(unknown) == []
    assert page.evaluate("app.graph.nodes.filter(n => n.has_errors).map(n => n.type)") == []
    shown = page.evaluate("document.body.innerText").lower()
    assert "missing" not in shown and "issues found" not in shown
    converted = page.evaluate("app.graphToPrompt()")["output"]
    assert {node["class_type"] for node in converted.values()} == {node["type"] for node in nodes_of(read(name))}
    for node in nodes_of(read(name)):
        given = converted[str(node["id"])]["inputs"]
        assert set(given) == {entry["name"] for entry in node["inputs"]} - {"schedule"}
    page.close()


def test_the_ready_one_draws_warm_pictures_when_run_is_pressed(site: Any) -> None:
    address, opened = site
    page = open_template(opened, address, READY)
    entry = run_template(page, address)
    page.close()
    assert entry["status"]["status_str"] == "success", entry["status"]
    titles = {str(node["id"]): node.get("title") for node in read(READY)["nodes"]}
    drawn = {titles[key]: output["images"] for key, output in entry["outputs"].items()}
    warm = {}
    for title in ("Without guidance", "With guidance"):
        pictures = [
            np.asarray(Image.open(io.BytesIO(urllib.request.urlopen(view(address, image)).read())).convert("RGB"))
            for image in drawn[title]
        ]
        assert [picture.shape for picture in pictures] == [(256, 256, 3)] * 4
        warm[title] = np.mean([share_of_warm(picture) for picture in pictures])
    assert warm["With guidance"] > 0.75 and warm["Without guidance"] < 0.5


def view(address: str, image: dict[str, str]) -> str:
    return f"{address}/view?{urllib.parse.urlencode(image)}"


def share_of_warm(picture: np.ndarray) -> float:
    """Of the coloured pixels, how many are red or orange."""
    red, green, blue = picture.astype(float).reshape(-1, 3).T
    coloured = picture.reshape(-1, 3).max(1) - picture.reshape(-1, 3).min(1) > 100.0
    return float(((red > 1.25 * green) & (red > 1.5 * blue))[coloured].mean())
