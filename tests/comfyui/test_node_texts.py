"""What is written about the nodes, on a FAKE of ComfyUI: contract, help pages, translations and released names."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from helpers import nodes_page
from helpers.comfyui_contract import contract_faults
from helpers.comfyui_world import World
from helpers.repository import ROOT

HELP = ROOT / "comfy_nodes" / "web" / "docs"


def test_the_fake_has_what_the_contract_names(world: World) -> None:
    assert contract_faults() == []


def test_a_contract_that_is_not_kept_is_noticed(world: World) -> None:
    broken = {
        "names": ["comfy.samplers.Nothing"],
        "callables": {"comfy.samplers.calc_cond_batch": ["model", "x_in", "conds"], "comfy.nosuch.f": []},
    }
    assert len(contract_faults(broken)) == 3


def test_every_input_and_output_is_explained(world: World) -> None:
    for node in world.nodes.NODES:
        schema = node.define_schema()
        assert schema.description
        assert [entry.id for entry in [*schema.inputs, *schema.outputs] if not entry.tooltip] == []


def test_every_node_has_a_help_page_and_every_help_page_a_node(world: World) -> None:
    # ComfyUI's frontend looks for docs/ID/LANGUAGE.md and then for docs/ID.md, which is therefore the English page.
    pages = {path.stem: path for path in HELP.glob("*.md")}
    assert set(pages) == {node.define_schema().node_id for node in world.nodes.NODES}
    assert all(path.read_text(encoding="utf-8").startswith("# ") for path in pages.values())
    assert {path.parent.name for path in HELP.glob("*/*.md")} <= set(pages)


def test_a_translation_says_nothing_of_what_there_is_not(world: World) -> None:
    """What a translation lacks is shown in English, by the node's own texts; so that is a warning and no fault."""
    schemas = {node.define_schema().node_id: node.define_schema() for node in world.nodes.NODES}
    for path in sorted((ROOT / "locales").glob("*/main.json")):
        language = path.parent.name
        translated = json.loads(path.read_text(encoding="utf-8"))["nodeDefs"]
        there = {page.parent.name for page in HELP.glob(f"*/{language}.md")}
        missing = [f"{name}: the help page" for name in schemas if name not in there]
        for name, schema in schemas.items():
            known = {
                "inputs": [entry.id for entry in schema.inputs],
                "outputs": [str(i) for i in range(len(schema.outputs))],
            }
            for part, keys in known.items():
                entries = translated.get(name, {}).get(part, {})
                assert set(entries) <= set(keys), (path, name, part)
                assert all(text for entry in entries.values() for text in entry.values())
                missing += [f"{name}: {part} {key}" for key in keys if key not in entries]
        assert set(translated) <= set(schemas), path
        if missing:
            warnings.warn(f"locales/{language} lacks, and shows in English: {'; '.join(missing)}", stacklevel=1)


def test_nodes_that_were_released_stay_as_they_are(world: World) -> None:
    """Workflows store ids, and widgets by position: new inputs and outputs go to the end, nothing else may change."""
    released = json.loads(Path(__file__).with_name("released_nodes.json").read_text(encoding="utf-8"))
    schemas = {node.define_schema().node_id: node.define_schema() for node in world.nodes.NODES}
    for name, entry in released.items():
        schema = schemas[name]
        assert [schema.display_name, schema.category] == [entry["display_name"], entry["category"]]
        inputs = [[widget.id, widget.io_type] for widget in schema.inputs]
        outputs = [[socket.facts["display_name"], socket.io_type] for socket in schema.outputs]
        assert inputs[: len(entry["inputs"])] == entry["inputs"], name
        assert outputs[: len(entry["outputs"])] == entry["outputs"], name


def test_the_page_lists_every_node(world: World) -> None:
    remedy = "write the table of docs/comfyui.md again: make pages"
    assert nodes_page.page(world.nodes.NODES) == nodes_page.PAGE.read_text(encoding="utf-8"), remedy
