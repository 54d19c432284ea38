"""What a person does in the first minutes with the first template, in a browser on a real server: see test_real.py for
COMFYUI_PATH.

No node is red that the person did not make so, and every error is one sentence in the words of the node. A picture of
the page at each story's end is in pytest's temporary folder, under stories/.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from helpers.comfyui_page import (
    CHROMIUM,
    READY,
    TEMPLATES,
    act,
    browser,
    comfyui_server,
    ended,
    get,
    interrupt,
    open_template,
    photograph,
    press_run,
    put_into_custom_nodes,
)
from nft_pipeline.models import shipped_adapter

CHECKOUTS = [Path(path) for path in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if path]
pytestmark = [
    pytest.mark.skipif(not CHECKOUTS, reason="COMFYUI_PATH does not name a checkout of ComfyUI"),
    pytest.mark.skipif(
        CHROMIUM is None or importlib.util.find_spec("playwright") is None,
        reason="needs chromium on the PATH and pip install playwright",
    ),
]


class Story(NamedTuple):
    """What is done before Run is pressed, and what is to be seen.

    Args:
        deeds: JavaScript in the words of helpers.comfyui_page.act.
        again: deeds after which Run is pressed once more.
        cancelled: whether the job is cancelled while it samples.
        toast: a part of the error's sentence; "" where the job ends well, and then there is no toast at all.
        fault: the type of the node that the person has set wrongly, which alone may be red.
        badges: on Reward Guidance.
        line: a part of what stood under Reward Guidance.
    """

    deeds: str
    again: tuple[str, ...] = ()
    cancelled: bool = False
    toast: str = ""
    fault: str = "NFTRewardGuidance"
    badges: tuple[str, ...] = ()
    line: str = ""


WARM = "set(guide, 'adapter', 'shapes-warm.safetensors'); set(sheet, 'adapter', 'shapes-warm.safetensors');"
STORIES = {
    "another law that fits": Story(WARM + "set(guide, 'law', 'odds');", line="alpha"),
    "the law that shapes-warm had before": Story(WARM + "set(guide, 'law', 'nft'); set(guide, 'mode', 'fast');"),
    "another seed": Story("set(sampler, 'seed', 5); set(sheet, 'seeds', '5');"),
    "other prompts and two seeds in the strip": Story(
        "set(sheet, 'prompts', 'three small rings\\ntwo green squares'); set(sheet, 'seeds', '1, 2');"
    ),
    "a strength far out": Story("set(guide, 'strength', 8); set(sheet, 'strengths', '-4, 8');"),
    "the plot is added and deleted": Story(
        "const plot = add('NFTAlphaPlot'); sampler.connect(0, plot, 0); guide.connect(0, plot, 1);"
        "app.graph.remove(plot);"
    ),
    "the strip is deleted": Story("app.graph.remove(sheet);", line="scale"),
    "Run is pressed twice": Story("set(sampler, 'seed', 6);", again=("set(guide, 'strength', 1);",)),
    "a batch of four": Story("set(of('EmptySD3LatentImage'), 'batch_size', 4);", line="scale"),
    "CFG and another sampler": Story(
        "set(sampler, 'cfg', 3.5); set(sampler, 'sampler_name', 'euler_ancestral_cfg_pp');", line="scale"
    ),
    "the node is bypassed": Story("guide.mode = 4;"),
    "the node is muted, and on again": Story("guide.mode = 2; guide.mode = 0; set(guide, 'strength', 1.5);"),
    "a copy of the node behind it": Story(
        "const copy = guide.clone(); app.graph.add(copy); guide.connect(0, copy, 0); copy.connect(0, sampler, 0);",
        line="scale",
    ),
    "a rate asked for beside a strength": Story(
        WARM + "set(guide, 'rate', 0.8);", toast="rate is 0.8 and strength is 2"
    ),
    "a rate asked for": Story(WARM + "set(guide, 'strength', 1); set(guide, 'rate', 0.6);", line="liked becomes 60%"),
    "the file of another family": Story(
        "set(guide, 'adapter', 'somebody-sdxl.safetensors');", toast="is for SDXL"
    ),
    "a file that broke on its way": Story(
        "set(guide, 'adapter', 'broken.safetensors');", toast="truncated or damaged"
    ),
    "words for strengths in the strip": Story(
        "set(sheet, 'strengths', '0, strong');", toast="'strong' in strengths", fault="NFTStrengthGrid"
    ),
    "a size that the model does not draw": Story(
        "const empty = of('EmptySD3LatentImage'); set(empty, 'width', 1024); set(empty, 'height', 1024);",
        toast="at most 128 x 128, and was asked for 1024 x 1024",
        fault="NFTStrengthGrid",
    ),
    "the adapter in a LoRA loader too": Story(
        "const loader = add('LoraLoaderModelOnly'); set(loader, 'lora_name', 'shapes-follow.safetensors');"
        "of('NFTShapesModel').connect(0, loader, 0); loader.connect(0, guide, 0);",
        badges=("\u26a0 loaded twice",),
        line="a LoRA loader or a hook has put",
    ),
    "a job is cancelled": Story("set(sampler, 'steps', 3000);", cancelled=True, line="/3000  "),
}  # fmt: skip
GUIDE = "app.graph.nodes.find(n => n.type === 'NFTRewardGuidance')"
BADGES = f"({GUIDE}?.badges ?? []).map(b => (typeof b === 'function' ? b() : b).text).filter(t => t.includes('\u26a0'))"
RED = "app.graph.nodes.filter(n => n.has_errors).map(n => n.type)"
TOASTS = "[...document.querySelectorAll('.p-toast-message')].map(e => e.innerText)"
READY_GRAPH = json.loads(next(path for path in TEMPLATES if path.stem == READY).read_text(encoding="utf-8"))
LISTEN = """async () => {
    const { api } = await import("/scripts/api.js");
    window.told = [];
    api.addEventListener("progress_text", ({ detail }) => window.told.push(detail.text));
}"""
ANEW = """async workflow => {
    window.told.length = 0;
    app.extensionManager.toast.removeAll();
    await app.loadGraphData(workflow);
}"""


@pytest.fixture(scope="module", params=CHECKOUTS or [None], ids=lambda path: "none" if path is None else path.name)
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The address of a server with wrong files among its LoRAs, a page with the template, and a folder of pictures."""
    folder, pictures = tmp_path_factory.mktemp("page"), tmp_path_factory.getbasetemp() / "stories"
    put_into_custom_nodes(folder)
    loras = folder / "models" / "loras"
    loras.mkdir(parents=True)
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    sdxl = {f"{layer}.lora_down.weight": torch.ones(4, 2048), f"{layer}.lora_up.weight": torch.ones(640, 4)}
    save_file({**sdxl, f"{layer}.alpha": torch.tensor(4.0)}, loras / "somebody-sdxl.safetensors")
    shipped = shipped_adapter("shapes-follow")
    assert shipped is not None
    whole = (shipped / "comfyui" / "shapes-follow.safetensors").read_bytes()
    (loras / "broken.safetensors").write_bytes(whole[:-1000])
    with comfyui_server(request.param, folder) as address, browser() as opened:
        page = open_template(opened, address, READY)
        page.evaluate(LISTEN)
        yield address, page, pictures / request.param.name


@pytest.mark.parametrize("name", STORIES)
def test_a_story_ends_as_a_person_expects(name: str, site: Any) -> None:
    address, page, pictures = site
    story = STORIES[name]
    page.keyboard.press("Escape")  # what shows an error in older pages lies over the others
    page.evaluate(ANEW, READY_GRAPH)
    page.wait_for_timeout(1000)
    before = set(get(f"{address}/history"))
    number = list(STORIES).index(name)  # a seed of its own, or ComfyUI has the picture of another story
    act(page, f"set(sampler, 'seed', {100 + number}); {story.deeds}")
    press_run(page)
    if story.cancelled:
        while not get(f"{address}/queue")["queue_running"]:
            page.wait_for_timeout(50)
        page.wait_for_timeout(1500)
        interrupt(address)
    for deeds in story.again:
        act(page, deeds)
        press_run(page)
    entries = ended(page, address, before, 1 + len(story.again))
    photograph(page, pictures / f"{name}.png")
    wrong = bool(story.toast) or story.cancelled
    assert {entry["status"]["status_str"] for entry in entries} == {"error" if wrong else "success"}, entries
    toasts = page.evaluate(TOASTS)
    assert any(story.toast in text for text in toasts) if story.toast else toasts == []
    assert not any("nft_" in text or text.strip().endswith(":") for text in toasts)
    assert set(page.evaluate(RED)) <= ({story.fault} if story.toast else set())
    assert any(story.line in text for text in page.evaluate("told")) or not story.line
    assert page.evaluate(BADGES) == list(story.badges)


def test_a_run_after_a_cancelled_one_is_as_if_it_had_not_been(site: Any) -> None:
    address, page, _ = site
    before = set(get(f"{address}/history"))
    act(page, "set(sampler, 'steps', 14); set(sampler, 'seed', 7);")
    press_run(page)
    (entry,) = ended(page, address, before)
    assert entry["status"]["status_str"] == "success", entry["status"]


def test_app_mode_of_the_template_has_the_dial_alone(site: Any) -> None:
    address, page, pictures = site
    if not page.evaluate("app.extensionManager.command.commands.some(command => command.id === 'Comfy.ToggleLinear')"):
        pytest.skip("this frontend has no App Mode")
    page.evaluate(ANEW, READY_GRAPH)
    page.wait_for_timeout(1000)
    page.evaluate("app.extensionManager.command.execute('Comfy.ToggleLinear')")
    page.wait_for_timeout(2000)
    before = set(get(f"{address}/history"))
    press_run(page)
    (entry,) = ended(page, address, before)
    photograph(page, pictures / "App Mode.png")
    shown = page.evaluate("document.body.innerText")
    page.evaluate("app.extensionManager.command.execute('Comfy.ToggleLinear')")
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert "strength" in shown and "adapter" in shown and "scheduler" not in shown
