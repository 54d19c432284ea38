"""ComfyUI's server with a copy of this repository in custom_nodes, and its page in a browser."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from helpers.repository import ROOT, repository_files
from nft_pipeline.models import shipped_adapter

CLIENT = ROOT / "tests" / "helpers" / "comfyui_client.py"
CLONE = "diffusion-nft"
# No first-run tour, of App Mode neither; texts at every zoom.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.OnboardingCoachmarks.Seen": ["appMode", "firstRun"],
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
}
TEMPLATES = sorted((ROOT / "example_workflows").glob("*.json"))
# Those that need no file from elsewhere. The node pack has the second alone.
READY_WITH_EMOJI, READY = ALL_READY = ("1-emoji-ready-to-run", "1-shapes-ready-to-run")
# Whether the page opens a template by its address: of the pages that were tried, 1.27 does not and 1.45 does.
BY_ADDRESS = "window.__COMFYUI_FRONTEND_VERSION__.split('.').slice(0, 2).reduce((a, b) => 1000 * a + +b) >= 1045"
LOAD = "async address => app.loadGraphData(await (await fetch(address)).json())"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def put_into_custom_nodes(folder: Path) -> None:
    """The repository's files, as a clone of it would have them."""
    for path in repository_files():
        copy = folder / "custom_nodes" / CLONE / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def client_command(checkout: Path, folder: Path, port: int) -> list[str]:
    """helpers/comfyui_client.py under ComfyUI's interpreter."""
    return [os.environ.get("COMFYUI_PYTHON", sys.executable), str(CLIENT), str(checkout), str(folder), str(port)]


def get(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return json.loads(answer.read())


def interrupt(address: str) -> None:
    """What the page's Cancel asks of the server; the page itself is too busy with a thousand quick steps to ask."""
    asked = urllib.request.Request(f"{address}/interrupt", b"{}", {"Content-Type": "application/json"})
    urllib.request.urlopen(asked, timeout=60).close()


def pretend_to_have(folder: Path, workflow: Mapping[str, Any]) -> None:
    """Empty files under the names that a workflow's loaders ask for: the page looks at names only."""
    for node in workflow["nodes"]:
        wanted = [(model["directory"], model["name"]) for model in node["properties"].get("models", [])]
        if node["type"] == "NFTRewardGuidance":
            wanted.append(("loras", node["widgets_values"][0]))
        for kind, name in wanted:
            (folder / "models" / kind).mkdir(parents=True, exist_ok=True)
            if shipped_adapter(Path(name).stem) is None:
                (folder / "models" / kind / name).touch()


@contextmanager
def comfyui_server(checkout: Path, folder: Path) -> Iterator[str]:
    """A server with `folder` as its base directory; yields its address. The log goes to server.log in there."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("wb") as log:
        command = [*client_command(checkout, folder, port), "--serve"]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=checkout)
        try:
            for _ in range(600):
                if process.poll() is not None:
                    raise RuntimeError("the server ended: " + (folder / "server.log").read_text()[-3000:])
                try:
                    get(f"{address}/queue")
                    break
                except (urllib.error.URLError, TimeoutError):
                    time.sleep(0.5)
            for name, value in SETTINGS.items():
                data = json.dumps(value).encode()
                urllib.request.urlopen(
                    urllib.request.Request(f"{address}/settings/{name}", data, method="POST")
                ).close()
            yield address
        finally:
            process.terminate()
            process.wait(30)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium that reaches this machine only."""
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield opened
        opened.close()


def open_template(opened: Any, address: str, name: str) -> Any:
    """A page with a template of ours on it, by the address that ComfyUI's page has for templates if it has one."""
    page = opened.new_page(viewport={"width": 2000, "height": 1200})
    page.set_default_timeout(240_000)
    page.goto(f"{address}/?template={name}&source={CLONE}")
    page.wait_for_function("window.app && window.app.graph && window.app.extensionManager")
    if not page.evaluate(BY_ADDRESS):  # the page of 0.3.64: as its list of templates does when one is chosen
        page.wait_for_timeout(3000)
        page.evaluate(LOAD, f"{address}/api/workflow_templates/{CLONE}/{name}.json")
    # It shows a workflow of ComfyUI's own first.
    ours = "n => n.type === 'NFTRewardGuidance'"
    page.wait_for_function(f"window.app && window.app.graph && window.app.graph.nodes.some({ours})")
    page.wait_for_timeout(3000)
    return page


def run_template(page: Any, address: str) -> dict[str, Any]:
    """Press Run; the history's entry when it has ended."""
    before = set(get(f"{address}/history"))
    press_run(page)
    return ended(page, address, before)[0]


def press_run(page: Any) -> None:
    """What queues the graph that the page shows."""
    page.get_by_role("button", name="Run", exact=True).first.click()


def ended(page: Any, address: str, before: Set[str], jobs: int = 1) -> list[dict[str, Any]]:
    """The history's entries of jobs that were queued, when they have ended; `before` holds the ids of older ones."""
    for _ in range(600):
        history = get(f"{address}/history")
        new = [dict(entry) for key, entry in history.items() if key not in before]
        if len(new) >= jobs:
            page.wait_for_timeout(3000)  # until the pictures are on their nodes
            return new
        time.sleep(0.5)
    raise TimeoutError("the queued workflow did not end in five minutes")


def photograph(page: Any, path: Path) -> None:
    """A picture of the page for people to look at; none where the browser is too busy to make one."""
    from playwright.sync_api import TimeoutError as TooBusy

    with suppress(TooBusy):
        page.screenshot(path=path, timeout=20_000)


def act(page: Any, deeds: str) -> Any:
    """Do with the page's graph what a person does with the mouse: JavaScript in the words of `_DEEDS`."""
    return page.evaluate(f"() => {{ {_DEEDS} {deeds} }}")


_DEEDS = """
    const of = (type, place = 0) => app.graph.nodes.filter(n => n.type === type)[place];
    const add = (type) => { const node = LiteGraph.createNode(type); app.graph.add(node); return node; };
    const slot = (node, name) => node.inputs.findIndex(entry => entry.name === name);
    const set = (node, name, value) => {
        const widget = node.widgets.find(widget => widget.name === name);
        widget.value = value;
        widget.callback?.(value);
    };
    const guide = of("NFTRewardGuidance"), sampler = of("KSampler"), sheet = of("NFTStrengthGrid");
"""
