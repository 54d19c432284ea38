"""Every sampler, guider and MODEL node of real ComfyUI checkouts, beside the guide: see helpers/comfyui_zoo.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from helpers.repository import ROOT
from nft_pipeline.adapter import Adapter, read_adapter, write_adapter
from nft_pipeline.models import shipped_adapter

CHECKOUTS = [Path(path) for path in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if path]
pytestmark = pytest.mark.skipif(not CHECKOUTS, reason="COMFYUI_PATH does not name a checkout of ComfyUI")
DRIVER = ROOT / "tests" / "helpers" / "comfyui_zoo.py"
STEPS, CLOSE, SEEN = 6, 1e-4, 1e-2
# In these the loader's merged weights are rounded, and a LoRA beside the weights is not.
ROUNDED = {"ModelComputeDtype dtype=fp16": 1e-2, "ModelComputeDtype dtype=bf16": 1e-1}


def allowed(name: str) -> float:
    """How far a graph may be from the loader's."""
    return next((gap for part, gap in ROUNDED.items() if part in name), CLOSE)


def write_files(folder: Path) -> None:
    """The shipped base, its adapter as a policy, and random prompts and noise."""
    (folder / "loras").mkdir(parents=True)
    shipped = shipped_adapter("shapes-warm")
    assert shipped is not None
    weights = shipped.parent / "shapes" / "transformer"
    shutil.copy(weights / "diffusion_pytorch_model.safetensors", folder / "base.safetensors")
    warm = read_adapter("shapes-warm")
    config = replace(warm.config, kind="policy", name="policy", base_rate=None, dial=None)
    write_adapter(folder / "policy", Adapter(config, warm.lora))
    shutil.copy(folder / "policy" / "comfyui" / "policy.safetensors", folder / "loras")
    sizes = json.loads((weights / "config.json").read_text())
    generator = torch.Generator().manual_seed(5)
    tensors = {"noise": torch.randn(1, 16, 8, 8, generator=generator), "sigmas": torch.linspace(1, 0, STEPS + 1)}
    for name in ("positive", "negative", "third"):
        tensors[name] = torch.randn(1, 4, sizes["joint_attention_dim"], generator=generator)
        tensors[f"{name}_pooled"] = torch.randn(1, sizes["pooled_projection_dim"], generator=generator)
    save_file(tensors, folder / "inputs.safetensors")


@pytest.fixture(scope="module", params=CHECKOUTS or [None], ids=lambda path: "none" if path is None else path.name)
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What was found of each graph, by its name."""
    folder = tmp_path_factory.mktemp("zoo") / "given"
    write_files(folder)
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, str(DRIVER), str(request.param), str(ROOT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, cwd=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    found: dict[str, dict[str, Any]] = json.loads((folder / "zoo.json").read_text())
    for name, graph in found.items():
        print(f"{name}: gap {graph['gap']:.1e}, effect {graph['effect']:.2f} {graph['error'] or graph['skipped']}")
    return {name: graph for name, graph in found.items() if not graph["skipped"]}


def test_a_policy_at_strength_1_is_the_lora_loader_in_every_graph(graphs: dict[str, dict[str, Any]]) -> None:
    assert {name: graph["error"] for name, graph in graphs.items() if graph["error"]} == {}
    assert {name: graph["gap"] for name, graph in graphs.items() if not graph["gap"] < allowed(name)} == {}


def test_strength_0_is_no_node_bit_for_bit_in_every_graph(graphs: dict[str, dict[str, Any]]) -> None:
    assert [name for name, graph in graphs.items() if not graph["off"]] == []


def test_there_are_enough_of_them_to_mean_something(graphs: dict[str, dict[str, Any]]) -> None:
    seen = {name for name, graph in graphs.items() if graph["effect"] > SEEN}
    assert len(seen) >= 100
    kinds = {name.split()[0] for name in seen}
    assert kinds == {"sampler", "guider", "before", "after", "pair"}
    assert any("cfg_pp" in name for name in seen) and any("DualCFGGuider" in name for name in seen)
