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
    ALL_READY,
    CHROMIUM,
    READY,
    READY_WITH_EMOJI,
    TEMPLATES,
    act,
    browser,
    comfyui_server,
    get,
    open_template,
    pretend_to_have,
    put_into_custom_nodes,
    run_template,
)
from helpers.template_pictures import PICTURES, STEPS
from nft_pipeline.training.rewards import load_reward

CHECKOUTS = [Path(path) for path in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if path]
WIDGETS = {"COMBO", "INT", "FLOAT", "STRING"}
LEFT_OPEN = {"schedule", "loaded"}  # sockets that need nothing
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
    assert len(TEMPLATES) == 6
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
            if options is not None and (key != "adapter" or name in ALL_READY):
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
    assert open_inputs <= LEFT_OPEN


@pytest.mark.parametrize("name", ALL_READY)
def test_the_picture_beside_a_ready_one_is_of_what_it_draws(name: str) -> None:
    drawn, values = PICTURES[name], {node["type"]: node["widgets_values"] for node in nodes_of(read(name))}
    (prompt,) = (node["widgets_values"][0] for node in nodes_of(read(name)) if node.get("title") == "Prompt")
    adapter, strengths, seed, steps, *_ = values["NFTStrengthGrid"]
    assert (prompt, int(seed), steps) == (drawn.prompt, drawn.seed, STEPS)
    assert tuple(map(float, strengths.split(","))) == drawn.strengths
    assert values["NFTShapesModel"] == [drawn.model] and Path(adapter).stem == drawn.adapter
    assert values["KSampler"][0] == drawn.seed and values["NFTRewardGuidance"][0] == adapter


@pytest.mark.parametrize("name", ALL_READY)
def test_app_mode_of_a_ready_one_has_the_dial_and_shows_both_pictures(name: str) -> None:
    workflow = read(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    app = workflow["extra"]["linearData"]
    shown = [(nodes[number]["type"], widget) for number, widget in app["inputs"]]
    assert ("NFTRewardGuidance", "strength") in shown
    for number, widget in app["inputs"]:
        assert widget in {entry["name"] for entry in nodes[number]["inputs"] if "widget" in entry}
    assert [nodes[number]["type"] for number in app["outputs"]] == ["NFTStrengthGrid", "SaveImage"]


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


@pytest.fixture
def output(site: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's folder of pictures."""
    return sorted(tmp_path_factory.getbasetemp().glob("page*"))[-1] / "output"


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
        filled = [entry for entry in node["inputs"] if entry["link"] is not None or "widget" in entry]
        assert set(given) == {entry["name"] for entry in filled}
    page.close()


def test_the_ready_one_mends_a_wrong_picture_when_run_is_pressed(site: Any) -> None:
    """At strength 0 there is no red circle left of a blue cross; with guidance there is one, and only that."""
    address, opened = site
    page = open_template(opened, address, READY)
    entry = run_template(page, address)
    assert entry["status"]["status_str"] == "success", entry["status"]
    guided = picture_of(entry, address, "With guidance")
    act(page, "set(guide, 'strength', 0)")
    entry = run_template(page, address)
    assert entry["status"]["status_str"] == "success", entry["status"]
    plain = picture_of(entry, address, "With guidance")
    page.close()
    assert guided.shape == plain.shape == (256, 256, 3)
    assert share_of(guided, RED)[0] > 0.9 and share_of(guided, BLUE)[1] > 0.9
    assert share_of(plain, BLUE)[1] < 0.5
    sheet = next(output for key, output in entry["outputs"].items() if titles()[key].startswith("One seed"))["images"]
    assert len(sheet) == 1


def test_the_first_one_mends_what_a_sign_says_when_run_is_pressed(site: Any) -> None:
    """As the reward `ocr` reads it, which is what the adapter was rewarded by: in the strip, and below it."""
    address, opened = site
    page = open_template(opened, address, READY_WITH_EMOJI)
    guided = run_template(page, address)
    act(page, "set(guide, 'strength', 0)")
    plain = run_template(page, address)
    page.close()
    assert guided["status"]["status_str"] == plain["status"]["status_str"] == "success", (guided, plain)
    strip = on_yellow(picture_of(guided, address, "One seed, one prompt, five strengths"))
    below = [picture_of(entry, address, "With guidance") for entry in (plain, guided)]
    assert len(strip) == 5 and below[0].shape == below[1].shape == (256, 256, 3)
    prompt = PICTURES[READY_WITH_EMOJI].prompt
    pictures = [Image.fromarray(picture) for picture in (strip[0], strip[-1], *below)]
    read_of = load_reward("ocr").score(pictures, [prompt] * 4, [{}] * 4).details["text"]
    assert [text == "OPEN" for text in read_of] == [False, True, False, True], read_of


@pytest.mark.parametrize(
    ("name", "adapter"),
    [
        (READY, "shapes-warm.safetensors"),
        (READY, "shapes-follow.safetensors"),
        (READY_WITH_EMOJI, "emoji-3d"),
        (READY_WITH_EMOJI, "emoji-words"),
    ],
)
def test_no_node_is_red_whatever_adapter_and_strength_are_chosen(name: str, adapter: str, site: Any) -> None:
    """The plot, another adapter, strength 0 and -1, and the default sweep: none of them is an error."""
    address, opened = site
    page = open_template(opened, address, name)
    act(page, ADD_PLOT)
    for strength in (0, -1, 2):
        act(page, f"set(guide, 'adapter', '{adapter}')")
        act(page, f"set(guide, 'strength', {strength})")
        assert run_template(page, address)["status"]["status_str"] == "success", strength
    act(page, ADD_SWEEP)
    assert run_template(page, address)["status"]["status_str"] == "success"
    assert page.evaluate("app.graph.nodes.filter(n => n.has_errors).map(n => n.type)") == []
    page.close()


def test_few_widgets_are_shown_and_strength_is_a_slider(site: Any) -> None:
    """In the classic canvas; an artist sees the adapter, strength, law and mode."""
    address, opened = site
    page = open_template(opened, address, READY)
    widgets = page.evaluate(f"{GUIDE}.widgets.filter(w => {GUIDE}.isWidgetVisible(w)).map(w => [w.name, w.type])")
    page.close()
    assert [name for name, _ in widgets] == ["adapter", "strength", "law", "mode"]
    assert dict(widgets)["strength"] == "slider"


@pytest.mark.parametrize("advanced", [False, True])
def test_widgets_stand_one_below_another_without_a_gap(advanced: bool, site: Any) -> None:
    """In the classic canvas, where those that are hidden are to take no room."""
    address, opened = site
    page = open_template(opened, address, READY)
    act(page, f"guide.showAdvanced = {json.dumps(advanced)}; guide.setDirtyCanvas(true, true);")
    page.wait_for_timeout(500)
    shown = page.evaluate(f"{GUIDE}.widgets.filter(w => {GUIDE}.isWidgetVisible(w)).map(w => w.y)")
    row = page.evaluate("LiteGraph.NODE_WIDGET_HEIGHT") + 4
    page.close()
    assert len(shown) == (12 if advanced else 4)
    assert np.diff(shown).tolist() == [row] * (len(shown) - 1)


def test_an_error_is_a_toast_with_its_first_sentence_in_the_nodes_words(site: Any) -> None:
    address, opened = site
    page = open_template(opened, address, READY)
    act(page, "set(guide, 'law', 'odds')")
    assert run_template(page, address)["status"]["status_str"] == "error"
    toasts = page.evaluate("[...document.querySelectorAll('.p-toast-message')].map(e => e.innerText)")
    page.close()
    assert any('law "odds" needs a positive adapter' in text and "nft_" not in text for text in toasts), toasts


def test_a_lora_loader_behind_the_node_is_a_badge_on_it(site: Any) -> None:
    address, opened = site
    page = open_template(opened, address, READY)
    act(page, ADD_LOADER)
    run_template(page, address)
    badges = page.evaluate(f"({GUIDE}.badges ?? []).map(b => (typeof b === 'function' ? b() : b).text)")
    page.close()
    assert "\u26a0 loaded twice" in badges


def test_pictures_are_rated_one_by_one_by_buttons(site: Any, output: Path) -> None:
    address, opened = site
    page = open_template(opened, address, READY)
    act(page, ADD_RATING)
    run_template(page, address)
    rows = output / "ratings" / "metadata.jsonl"
    assert not rows.exists()
    page.evaluate("document.querySelector('.diffusion-nft-sheet button[data-verdict=like]').click()")
    page.wait_for_function("document.querySelector('.diffusion-nft-sheet [aria-pressed=true]')")
    page.close()
    (row,) = [json.loads(line) for line in rows.read_text().splitlines()]
    assert row["liked"] is True and row["prompt"] == "a red circle left of a blue cross" and row["seed"] == 4


GUIDE = "app.graph.nodes.find(n => n.type === 'NFTRewardGuidance')"
ADD_PLOT = "const plot = add('NFTAlphaPlot'); sampler.connect(0, plot, 0); guide.connect(0, plot, 1);"
ADD_SWEEP = "add('NFTStrengthSweep').connect(0, guide, slot(guide, 'strength'));"
ADD_RATING = "of('ImageScaleBy').connect(0, add('NFTRateImages'), 0);"
ADD_LOADER = (
    "const loader = add('LoraLoaderModelOnly'); set(loader, 'lora_name', 'shapes-follow.safetensors');"
    "guide.connect(0, loader, 0); loader.connect(0, sampler, 0);"
)
RED, BLUE = (0, 2), (2, 0)  # the channel that is high, and the one that is low


def titles() -> dict[str, str]:
    return {str(node["id"]): node.get("title", "") for node in read(READY)["nodes"]}


def picture_of(entry: dict[str, Any], address: str, title: str) -> np.ndarray:
    """The picture of the node with this title."""
    (image,) = next(output for key, output in entry["outputs"].items() if titles()[key] == title)["images"]
    return np.asarray(Image.open(io.BytesIO(urllib.request.urlopen(view(address, image)).read())).convert("RGB"))


def on_yellow(sheet: np.ndarray) -> list[np.ndarray]:
    """The pictures of a sheet in one row, each of which has a yellow border."""
    yellow = (sheet[..., 0] > 200) & (sheet[..., 2] < 160)
    rows, columns = np.flatnonzero(yellow.any(1)), yellow.any(0).astype(int)
    edges = np.flatnonzero(np.diff(columns, prepend=0, append=0))
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [sheet[rows[0] : rows[-1] + 1, start:end] for start, end in pairs]


def view(address: str, image: dict[str, str]) -> str:
    return f"{address}/view?{urllib.parse.urlencode(image)}"


def share_of(picture: np.ndarray, colour: tuple[int, int]) -> tuple[float, float]:
    """Of the coloured pixels in the left and in the right half, how many are of this colour."""
    high, low = colour
    shares = []
    for half in np.split(picture.astype(float), 2, axis=1):
        pixels = half.reshape(-1, 3)
        coloured = pixels[pixels.max(1) - pixels.min(1) > 100.0]
        other = coloured[:, [high, low]]
        shares.append(float((other[:, 0] > 2 * other[:, 1]).mean()) if len(coloured) else 0.0)
    return shares[0], shares[1]
