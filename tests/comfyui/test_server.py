"""A real ComfyUI server with a copy of this repository in custom_nodes; see test_real.py for COMFYUI_PATH."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers.comfyui_page import client_command, free_port, put_into_custom_nodes
from helpers.local_hub import LocalHub
from helpers.repository import ROOT
from nft_pipeline.models import shipped_adapter

CHECKOUTS = [Path(path) for path in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if path]
pytestmark = pytest.mark.skipif(not CHECKOUTS, reason="COMFYUI_PATH does not name a checkout of ComfyUI")
NODES = sorted(path.stem for path in (ROOT / "comfy_nodes" / "web" / "docs").glob("*.md"))
CONDITIONING = '''
import torch
class TestConditioning:
    """Stands for a text encoder, which the tests do without."""
    @classmethod
    def INPUT_TYPES(cls): return {"required": {"text": ("STRING", {"default": ""})}}
    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "make", "test"
    def make(self, text):
        generator = torch.Generator().manual_seed(len(text))
        pooled = {"pooled_output": torch.randn(1, 128, generator=generator)}
        return ([[torch.randn(1, 8, 128, generator=generator), pooled]],)
NODE_CLASS_MAPPINGS = {"TestConditioning": TestConditioning}
'''


def one_step(model: str) -> tuple[str, dict[str, Any]]:
    """A sampler of one step for the MODEL of a node, which draws the model's first prediction."""
    return "KSampler", {
        "model": [model, 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 5,
        "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}  # fmt: skip


def graph(name: str, guide: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    nodes: dict[str, Any] = {
        "1": ("UNETLoader", {"unet_name": "shapes.safetensors", "weight_dtype": "default"}),
        "2": ("TestConditioning", {"text": "a circle"}),
        "3": ("TestConditioning", {"text": "nothing at all"}),
        "4": ("EmptySD3LatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "6": ("KSampler", {
            "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 5,
            "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}),
        "9": ("SaveLatent", {"samples": ["6", 0], "filename_prefix": name}),
    }  # fmt: skip
    if guide is not None:
        nodes["5"] = ("NFTRewardGuidance", {
            "model": ["1", 0], "adapter": "shapes-warm.safetensors", "strength": 1.0, "start_percent": 0.0,
            "end_percent": 1.0, "law": "nft", "mode": "exact", "beta": 0.0, "kind": "auto", "cap": 0.0, "guide": "both",
            **guide})  # fmt: skip
        nodes["6"][1]["model"] = ["5", 0]
    nodes |= more
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


SHAPES_INPUTS = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}


def shapes_graph(**more: Any) -> dict[str, Any]:
    """Two pictures of the shipped model, with its own texts."""
    nodes: dict[str, Any] = {
        "1": ("NFTShapesModel", {}),
        "2": ("CLIPTextEncode", {"clip": ["1", 1], "text": "a large cross"}),
        "3": ("CLIPTextEncode", {"clip": ["1", 1], "text": ""}),
        "4": ("EmptySD3LatentImage", {"width": 64, "height": 64, "batch_size": 2}),
        **more,
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


GRAPHS = {
    "base": graph("base"),
    "off": graph("off", {"strength": 0.0}),
    "guided": graph("guided", {}),
    "again": graph("again", {}),
    "measured": graph("measured", {"law": "auto", "mode": "auto", "rate": 0.6}),
    "plotted": graph("plotted", {}, **{
        "7": ("NFTAlphaPlot", {"latent": ["6", 0], "model": ["5", 0]}),
        "8": ("PreviewImage", {"images": ["7", 1]}),
    }),
    "scheduled": graph("scheduled", {"schedule": ["10", 0]}, **{
        "10": ("NFTStrengthSchedule", {"shape": "fade out", "low": 0.0, "high": 1.0, "power": 1.0, "custom": ""}),
    }),
    "swept": graph("swept", {"strength": ["11", 0]}, **{
        "11": ("NFTStrengthSweep", {"strengths": "0, 1"}),
    }),
    "info": {"1": {"class_type": "NFTAdapterInfo", "inputs": {"adapter": "shapes-warm.safetensors"}}},
    "rated": graph("rated", None, **{
        "20": ("EmptyImage", {"width": 8, "height": 8, "batch_size": 1, "color": 255}),
        "21": ("NFTRateImages", {
            "images": ["20", 0], "verdict": "like", "score": 0.5, "folder": "ratings", "prompt": "a circle"}),
    }),
    "custom": graph("custom", None, **{
        "12": ("NFTLoadAdapter", {"adapter": "shapes-warm.safetensors", "kind": "auto"}),
        "13": ("NFTGuider", {
            "model": ["1", 0], "adapter": ["12", 0], "positive": ["2", 0], "negative": ["3", 0], "cfg": 1.0,
            "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, "law": "nft", "mode": "exact", "beta": 0.0,
            "cap": 0.0, "guide": "both"}),
        "14": ("RandomNoise", {"noise_seed": 5}),
        "15": ("KSamplerSelect", {"sampler_name": "euler"}),
        "16": ("BasicScheduler", {"model": ["1", 0], "scheduler": "simple", "steps": 4, "denoise": 1.0}),
        "6": ("SamplerCustomAdvanced", {
            "noise": ["14", 0], "guider": ["13", 0], "sampler": ["15", 0], "sigmas": ["16", 0],
            "latent_image": ["4", 0]}),
    }),
    "shapes": graph("shapes", None, **{
        "1": ("NFTShapesModel", {}),
        "2": ("CLIPTextEncode", {"clip": ["1", 1], "text": "a large cross"}),
        "7": ("VAEDecode", {"samples": ["6", 0], "vae": ["1", 2]}),
        "8": ("SaveImage", {"images": ["7", 0], "filename_prefix": "shapes"}),
    }),
    "grid": shapes_graph(**{
        "30": ("NFTStrengthGrid", {
            **SHAPES_INPUTS, "adapter": "shapes-warm.safetensors", "vae": ["1", 2], "clip": ["1", 1],
            "strengths": "0 to 1 by 1", "seeds": "5", "steps": 4, "cfg": 2.0, "sampler_name": "euler",
            "scheduler": "simple", "denoise": 1.0, "prompts": "a large cross\na ring", "together": 8, "law": "auto",
            "mode": "auto", "kind": "auto"}),
        "31": ("SaveImage", {"images": ["30", 0], "filename_prefix": "sheet"}),
        "32": ("SaveImage", {"images": ["30", 1], "filename_prefix": "cells"}),
    }),
    "grid by hand": shapes_graph(**{
        "5": ("NFTRewardGuidance", {
            "model": ["1", 0], "adapter": "shapes-warm.safetensors", "strength": 1.0, "start_percent": 0.0,
            "end_percent": 1.0, "law": "auto", "mode": "auto", "beta": 0.0, "kind": "auto", "cap": 0.0,
            "guide": "both"}),
        "6": ("KSampler", {
            **SHAPES_INPUTS, "model": ["5", 0], "seed": 5, "steps": 4, "cfg": 2.0, "sampler_name": "euler",
            "scheduler": "simple", "denoise": 1.0}),
        "7": ("VAEDecode", {"samples": ["6", 0], "vae": ["1", 2]}),
        "33": ("SaveImage", {"images": ["7", 0], "filename_prefix": "by_hand"}),
    }),
    "scouted": graph("scouted", {}, **{
        "50": ("NFTEarlyChoice", {"model": ["5", 0], "candidates": 3, "after": 2, "among": "the whole batch"}),
        "4": ("EmptySD3LatentImage", {"width": 64, "height": 64, "batch_size": 2}),
        "6": ("KSampler", {
            "model": ["50", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 5,
            "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}),
    }),
    "one step": graph("one_step", None, **{"6": one_step("1")}),
    "one step guided": graph("one_step_guided", {}, **{"6": one_step("5")}),
    "regional": graph("regional", {}, **{
        "51": ("SolidMask", {"value": 0.0, "width": 64, "height": 64}),
        "52": ("SolidMask", {"value": 1.0, "width": 32, "height": 64}),
        "53": ("MaskComposite", {
            "destination": ["51", 0], "source": ["52", 0], "x": 0, "y": 0, "operation": "add"}),
        "54": ("NFTRegion", {"model": ["5", 0], "mask": ["53", 0]}),
        "6": one_step("54"),
    }),
    "from hub": graph("from_hub", None, **{
        "60": ("NFTHubAdapter", {"repo": "someone/warm", "kind": "auto", "file": "", "revision": ""}),
        "5": ("NFTApplyAdapter", {
            "model": ["1", 0], "adapter": ["60", 0], "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0,
            "law": "nft", "mode": "exact", "beta": 0.0, "cap": 0.0, "guide": "both"}),
        "6": ("KSampler", {
            "model": ["5", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 5,
            "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}),
    }),
    "hooked": graph("hooked", {}, **{
        "70": ("CreateHookLoraModelOnly", {"lora_name": "shapes-warm.safetensors", "strength_model": 1.0}),
        "71": ("ConditioningSetProperties", {
            "cond_NEW": ["2", 0], "hooks": ["70", 0], "strength": 1.0, "set_cond_area": "default"}),
        "6": ("KSampler", {
            "model": ["5", 0], "positive": ["71", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 5,
            "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}),
    }),
    "bypassed": graph("bypassed", {}, **{
        "72": ("LoraLoaderBypassModelOnly", {
            "model": ["5", 0], "lora_name": "shapes-warm.safetensors", "strength_model": 1.0}),
        "6": ("KSampler", {
            "model": ["72", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 5,
            "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}),
    }),
    "gone": graph("gone", {"adapter": "nosuch.safetensors"}),
    "backwards": graph("backwards", {"start_percent": 0.9, "end_percent": 0.1}),
    "base after": graph("base_after"),
}  # fmt: skip


@pytest.fixture(scope="module", params=CHECKOUTS or [None], ids=lambda path: "none" if path is None else path.name)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The report, and ComfyUI's base directory."""
    folder = tmp_path_factory.mktemp("server")
    shipped = shipped_adapter("shapes-warm")
    assert shipped is not None
    put_into_custom_nodes(folder)
    (folder / "custom_nodes" / "test_conditioning").mkdir()
    (folder / "custom_nodes" / "test_conditioning" / "__init__.py").write_text(CONDITIONING)
    for kind, source, name in (
        ("loras", shipped / "comfyui" / "shapes-warm.safetensors", "shapes-warm.safetensors"),
        (
            "diffusion_models",
            shipped.parent / "shapes" / "transformer" / "diffusion_pytorch_model.safetensors",
            "shapes.safetensors",
        ),
    ):
        (folder / "models" / kind).mkdir(parents=True)
        shutil.copy(source, folder / "models" / kind / name)
    (folder / "graphs.json").write_text(json.dumps(GRAPHS))
    (folder / "nodes.json").write_text(json.dumps([*NODES, "LoraLoaderBypassModelOnly"]))
    with LocalHub() as hub:
        file = shipped / "comfyui" / "shapes-warm.safetensors"
        hub.add("someone/warm", {"comfyui/warm.safetensors": file.read_bytes()})
        done = subprocess.run(
            client_command(request.param, folder, free_port()),
            capture_output=True,
            text=True,
            timeout=900,
            env=hub.environment(folder / "hub", token=None),
        )
    log = (folder / "server.log").read_text(errors="replace")
    assert done.returncode == 0, done.stderr[-3000:] + log[-6000:]
    return json.loads((folder / "report.json").read_text()), folder, log


def latent(folder: Path, name: str, number: int = 1) -> torch.Tensor:
    return load_file(folder / "output" / f"{name}_{number:05}_.latent")["latent_tensor"]


def test_all_nodes_are_there_with_a_help_page(server: Any) -> None:
    report, _, log = server
    assert NODES
    for node in NODES:
        assert report[f"info {node}"] is not None, log[-3000:]
        status, text = report[f"help {node}"]
        assert status == 200 and text.startswith("# ")


def test_graphs_run_to_their_end(server: Any) -> None:
    report, _, log = server
    wrong = ("gone", "backwards", *without_its_node(report))
    ends = {name: report[f"run {name}"].get("end", report[f"run {name}"]) for name in GRAPHS if name not in wrong}
    assert set(map(str, ends.values())) == {"execution_success"}, (ends, log[-4000:])


def without_its_node(report: Any) -> list[str]:
    """Graphs with a node that this ComfyUI does not have."""
    return [] if report["info LoraLoaderBypassModelOnly"] else ["bypassed"]


@pytest.mark.parametrize("way", ["hooked", "bypassed"])
def test_an_adapter_that_core_has_put_on_the_model_too_is_said(server: Any, way: str) -> None:
    report, _, _ = server
    if way in without_its_node(report):
        pytest.skip("this ComfyUI has no bypass loader")
    assert all("LoRA loader or a hook" in text for text in report[f"run {way}"]["texts"]["5"])
    assert not any("LoRA loader or a hook" in text for text in report["run guided"]["texts"]["5"])


def test_pictures_are_what_they_should_be(server: Any) -> None:
    _, folder, _ = server
    base, guided = latent(folder, "base"), latent(folder, "guided")
    assert torch.equal(latent(folder, "off"), base)
    assert (guided - base).abs().max() > 0.05
    assert torch.equal(latent(folder, "base_after"), base)
    torch.testing.assert_close(latent(folder, "custom"), guided)
    assert torch.equal(latent(folder, "swept", 1), base) and torch.equal(latent(folder, "swept", 2), guided)
    assert not torch.equal(latent(folder, "scheduled"), guided)


def test_a_scout_a_region_and_an_adapter_from_the_hub(server: Any) -> None:
    report, folder, _ = server
    guided = latent(folder, "guided")
    assert latent(folder, "scouted").shape[0] == 2
    kept = [text for text in report["run scouted"]["texts"]["50"] if text.startswith("of 6 noises kept: ")]
    assert len(kept) == 1 and "to be liked" in kept[0] and "looking took 12 forwards" in kept[0]
    regional, plain = latent(folder, "regional"), latent(folder, "one_step")
    torch.testing.assert_close(regional[..., 5:], plain[..., 5:])
    torch.testing.assert_close(regional[..., :3], latent(folder, "one_step_guided")[..., :3])
    assert (regional - plain)[..., :3].abs().max() > 0.05
    torch.testing.assert_close(latent(folder, "from_hub"), guided)
    assert (folder / "models" / "loras" / "hub" / "someone--warm" / "warm.safetensors").is_file()


def test_the_blueprints_are_offered(server: Any) -> None:
    blueprints = server[0]["blueprints"]
    if not isinstance(blueprints, dict):
        pytest.skip("this ComfyUI has no blueprints")
    assert {entry["name"] for entry in blueprints.values()} >= {"Liked Pictures"}


def test_a_search_finds_them_by_other_words(server: Any) -> None:
    report, _, _ = server
    if "search_aliases" not in report["info NFTStrengthGrid"]:
        pytest.skip("this ComfyUI searches by name alone")
    assert "xy plot" in report["info NFTStrengthGrid"]["search_aliases"]
    assert "Seed Scout" in report["info NFTEarlyChoice"]["search_aliases"]


def picture(folder: Path, name: str, number: int = 1) -> Any:
    return Image.open(folder / "output" / f"{name}_{number:05}_.png")


def test_a_contact_sheet_has_the_pictures_that_ksampler_draws(server: Any) -> None:
    _, folder, _ = server
    assert picture(folder, "sheet").size > (2 * 64, 4 * 64)
    cells = [np.asarray(picture(folder, "cells", i), dtype=int) for i in range(1, 9)]
    for i in range(2):  # of the first prompt at strength 1
        by_hand = np.asarray(picture(folder, "by_hand", i + 1), dtype=int)
        assert abs(cells[2 + i] - by_hand).max() <= 1 < abs(cells[i] - by_hand).max()


def test_a_saved_picture_says_what_guided_it(server: Any) -> None:
    _, folder, _ = server
    (note,) = json.loads(picture(folder, "by_hand").text["reward_guidance"])
    adapter = (folder / "models" / "loras" / "shapes-warm.safetensors").read_bytes()
    assert note["sha256"] == hashlib.sha256(adapter).hexdigest()
    assert (note["adapter"], note["strength"], note["law"]) == ("shapes-warm.safetensors", 1.0, "auto")
    (note,) = json.loads(picture(folder, "sheet").text["reward_guidance"])
    assert note["strengths"] == "0 to 1 by 1"
    (plain,) = (folder / "output").glob("shapes_*.png")
    assert "reward_guidance" not in Image.open(plain).text  # type: ignore[attr-defined]


def test_a_line_under_the_node_says_how_far_it_is(server: Any) -> None:
    report, _, _ = server
    texts = report["run guided"]["texts"]["5"]
    shown = [text.partition("  ")[0] for text in texts]  # ten per second at most, and the last
    assert shown[0] == "step 1/4" and shown[-1] == "step 4/4" and shown == sorted(set(shown))
    assert "alpha 0." in texts[0] and "push" in texts[0]
    first, *steps = report["run measured"]["texts"]["5"]
    assert "liked becomes 60%" in first and "this picture will be liked with " in steps[-1]


def test_nodes_show_texts_and_ratings_are_written(server: Any) -> None:
    report, folder, _ = server
    assert "everything drawn is red or orange" in str(report["run info"]["outputs"])
    row = json.loads((folder / "output" / "ratings" / "metadata.jsonl").read_text())
    assert row["prompt"] == "a circle" and row["liked"] is True


def test_wrong_values_end_in_a_sentence(server: Any) -> None:
    report, _, _ = server
    assert "nosuch.safetensors" in str(report["run gone"])
    assert "expected 0 <= start < end <= 1" in report["run backwards"]["said"]
