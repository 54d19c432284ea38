"""What ComfyUI's own LoRA code makes of files; started by tests/cards with ComfyUI's own interpreter.

    python comfyui_keys.py <ComfyUI checkout> <folder>

The folder has files.json, {file: {"model": "sd3" or a name of CONFIGS, "layers": n}}, base.safetensors (a small SD3)
and expected.safetensors (the change of each of its layers). report.json gets, by file: how many weights or parts of
weights got a patch, and for the small SD3 each patch's strength ratio to what is expected.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from comfyui_driver import allow_torchvision_without_its_binary

_UNET = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "use_checkpoint": False,
         "use_spatial_transformer": True, "legacy": False, "use_temporal_attention": False,
         "use_temporal_resblock": False}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd15": ("SD15", {**_UNET, "num_res_blocks": [2] * 4, "channel_mult": [1, 2, 4, 4], "context_dim": 768,
        "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1, "use_linear_in_transformer": False, "num_heads": 8, "num_head_channels": -1,
        "adm_in_channels": None}),
    "sdxl": ("SDXL", {**_UNET, "num_res_blocks": [2] * 3, "channel_mult": [1, 2, 4], "context_dim": 2048,
        "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_output": [0] * 3 + [2] * 3 + [10] * 3,
        "transformer_depth_middle": 10, "use_linear_in_transformer": True, "num_head_channels": 64,
        "adm_in_channels": 2816, "num_classes": "sequential"}),
    "flux": ("Flux", {"image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 768,
        "context_in_dim": 4096, "hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 2,
        "depth_single_blocks": 2, "axes_dim": [16, 56, 56], "theta": 10000, "qkv_bias": True, "guidance_embed": True,
        "patch_size": 2}),
}  # fmt: skip


def model_of(name: str, folder: Path) -> Any:
    import comfy.sd
    import comfy.supported_models

    if name == "sd3":
        return comfy.sd.load_diffusion_model(str(folder / "base.safetensors")).model
    kind, config = CONFIGS[name]
    meta = torch.device("meta")
    with meta:
        if name == "flux" and "txt_ids_dims" in comfy.ldm.flux.model.FluxParams.__annotations__:
            config = {**config, "txt_ids_dims": []}  # newer than 0.3.64
        made = getattr(comfy.supported_models, kind)(dict(config))
        made.unet_config = {**made.unet_config, "dtype": torch.float32}
        made.set_inference_dtype(torch.float32, None)
        return made.get_model({}, "", device=meta)


def main() -> None:
    root, folder = Path(sys.argv[1]), Path(sys.argv[2])
    logging.disable(logging.INFO)
    allow_torchvision_without_its_binary()
    sys.path.insert(0, str(root))
    sys.argv = sys.argv[:1]
    from comfy.cli_args import args

    args.cpu = True
    import comfy.lora
    import comfy.lora_convert
    from safetensors.torch import load_file

    expected, report = load_file(folder / "expected.safetensors"), {}
    models: dict[str, Any] = {}
    for file, facts in json.loads((folder / "files.json").read_text()).items():
        model = models.setdefault(facts["model"], model_of(facts["model"], folder))
        names = comfy.lora.model_lora_keys_unet(model, {})
        tensors = comfy.lora_convert.convert_lora(load_file(folder / file))
        patches = comfy.lora.load_lora(tensors, names)
        ratios = {}
        if facts["model"] == "sd3":
            for layer, change in expected.items():
                target = names[f"transformer.{layer}"]
                weight, offset, order = (target, None, None) if isinstance(target, str) else (*target, None)[:3]
                shape = model.get_parameter(weight).shape
                patch = [(1.0, patches[target], 1.0, offset, order)]
                found = comfy.lora.calculate_weight(patch, torch.zeros(shape), weight)
                found = found if offset is None else found.narrow(*offset)
                change = change if order is None else order(change)
                ratios[layer] = ((found * change).sum() / change.square().sum()).item()
        report[file] = {"patches": len(patches), "ratios": ratios}
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
