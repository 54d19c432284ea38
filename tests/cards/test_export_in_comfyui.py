"""What is published and exported, through real ComfyUI's own LoRA code: COMFYUI_PATH, as in tests/comfyui."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn

from helpers.adapters import config_values
from helpers.repository import ROOT
from nft_pipeline.adapter import Adapter, AdapterConfig, read_adapter
from nft_pipeline.adapters.keys import lora_modules
from nft_pipeline.families.registry import family_of
from nft_pipeline.hub_cards.export import export
from nft_pipeline.models import shipped_model

CHECKOUTS = [Path(path) for path in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if path]
pytestmark = pytest.mark.skipif(not CHECKOUTS, reason="COMFYUI_PATH does not name a checkout of ComfyUI")
CROSS, DOWN = "CrossAttnDownBlock2D", "DownBlock2D"


def models() -> dict[str, nn.Module]:
    """Of the sizes of the real ones, without weights."""
    with torch.device("meta"):
        return {
            "sd15": UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
            "sdxl": UNet2DConditionModel(
                sample_size=128,
                down_block_types=(DOWN, CROSS, CROSS),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                block_out_channels=(320, 640, 1280),
                transformer_layers_per_block=(1, 2, 10),
                attention_head_dim=(5, 10, 20),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
                cross_attention_dim=2048,
            ),
            "flux": FluxTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=True),
        }


def adapter_of(name: str, model: nn.Module) -> Adapter:
    """A policy on the layers that the trainer would choose."""
    component = "unet" if isinstance(model, UNet2DConditionModel) else "transformer"
    lora, targets = {}, family_of(model).lora_targets
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and path.endswith(targets):
            lora[f"{component}.{path}.lora_A.weight"] = torch.randn(1, module.in_features)
            lora[f"{component}.{path}.lora_B.weight"] = torch.randn(module.out_features, 1)
    values = config_values(kind="policy", name=name, rank=1, denoiser=type(model).__name__, component=component)
    return Adapter(AdapterConfig.from_dict(values), lora)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder for comfyui_keys.py, and what its files.json says."""
    folder, files = tmp_path_factory.mktemp("keys"), {}
    warm = read_adapter("shapes-warm")
    policy = Adapter(replace(warm.config, kind="policy", name="sd3", base_rate=None), warm.lora)
    adapters = {"sd3": policy, **{name: adapter_of(name, model) for name, model in models().items()}}
    for name, adapter in adapters.items():
        for form in ("comfyui", "kohya"):
            ((file, data),) = export(adapter, form).items()
            (folder / file).write_bytes(data)
            files[file] = {"model": name, "layers": len(lora_modules(adapter.lora))}
    pairs = {module: [warm.lora[f"transformer.{module}.lora_{side}.weight"] for side in "BA"]
             for module in lora_modules(warm.lora)}  # fmt: skip
    save_file({module: b @ a for module, (b, a) in pairs.items()}, folder / "expected.safetensors")
    base = shipped_model("shapes")
    assert base is not None
    os.symlink(base / "transformer" / "diffusion_pytorch_model.safetensors", folder / "base.safetensors")
    (folder / "files.json").write_text(json.dumps(files))
    return folder, files


@pytest.mark.parametrize("checkout", CHECKOUTS or [None], ids=lambda path: "none" if path is None else path.name)
def test_every_layer_is_found_and_at_full_strength(checkout: Path, given: tuple[Path, dict[str, Any]]) -> None:
    folder, files = given
    python, script = os.environ.get("COMFYUI_PYTHON", sys.executable), ROOT / "tests" / "helpers" / "comfyui_keys.py"
    command = [python, str(script), str(checkout), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads((folder / "report.json").read_text())
    assert {file: found["patches"] for file, found in report.items()} == {
        file: facts["layers"] for file, facts in files.items()
    }
    for file in ("sd3.safetensors", "sd3-kohya.safetensors"):
        assert len(report[file]["ratios"]) == files[file]["layers"]
        for layer, ratio in report[file]["ratios"].items():
            assert ratio == pytest.approx(1.0, abs=5e-4), (file, layer)
