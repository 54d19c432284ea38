"""The LoRA of an adapter as a file for other tools: ComfyUI, kohya's family, peft, or merged at one strength.

    comfyui   one file for ComfyUI's models/loras: LoRA, alpha head, settings
    kohya     lora_down, lora_up and alpha under underscored names, for kohya's tools: SD 1.5, SDXL, SD3, FLUX.1
    peft      adapter_config.json and adapter_model.safetensors, for peft's PeftModel
    merged    a plain LoRA at one fixed strength, for tools that know nothing of reward guidance

All forms but the first lose the dial. In `merged` the change of the weights is scaled once and for all,

    W + s B A,    s = w, the weight that the calibration found for this strength in one pass; without a calibration
                  s = law_scale(alpha, strength tilt) for a positive adapter, s = strength for a policy

with one weight, or one alpha, for all samples and noise levels. Where the calibration's slope is 0 that is what
guidance does in one pass. Elsewhere it is only the nearest thing to guidance that one LoRA file can hold: guidance
scales each sample by its own alpha.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nft_pipeline.adapter import Adapter, AdapterError
from nft_pipeline.adapters.keys import SECOND, component_lora, lora_key, lora_modules
from nft_pipeline.adapters.names import LORA_METADATA_KEY, comfyui_file
from nft_pipeline.adapters.write import adapter_files
from nft_pipeline.dial.scale import weight_of
from nft_pipeline.families.registry import FAMILIES
from nft_pipeline.files.strict import safetensors_bytes
from nft_pipeline.guidance import law_scale

EXPORT_HEADER_KEY = "diffusion_nft_export"


def export(
    adapter: Adapter,
    form: str,
    *,
    strength: float | None = None,
    law: str | None = None,
    alpha: float | None = None,
) -> dict[str, bytes]:
    """The files of one form.

    Args:
        adapter: the adapter, already checked; one with a LoRA for v_old is refused.
        form: one of `FORMS`.
        strength: for "merged" only; default the adapter's recommended one, as far as one pass reaches it.
        law: for "merged" of a positive adapter, see `nft_pipeline.guidance.law_scale`; None is the calibration's
            weight, and "nft" where there is no calibration of one pass.
        alpha: for "merged" of a positive adapter by a law, the one alpha that stands for all; default its base rate.

    Returns:
        The files' contents by their names, relative to the folder they are written to.

    Raises:
        AdapterError: an unknown form, one that cannot hold this adapter, no alpha where one is needed, or a strength
            beyond what the calibration says one pass reaches.
    """
    if form not in FORMS:
        raise AdapterError(f"the form is {form!r}, expected one of {', '.join(FORMS)}")
    if adapter.old is not None:
        raise AdapterError("the adapter has a LoRA for v_old, which no other tool's file can hold")
    if form == "merged":
        return _merged(adapter, strength, law, alpha)
    if strength is not None or alpha is not None:
        raise AdapterError(f"strength and alpha are for the form merged; the form {form} holds the LoRA at full weight")
    return FORMS[form](adapter)


def _comfyui(adapter: Adapter) -> dict[str, bytes]:
    path = comfyui_file(adapter.config.name)
    return {Path(path).name: adapter_files(adapter)[path]}


def _kohya(adapter: Adapter) -> dict[str, bytes]:
    config = adapter.config
    _one_denoiser(adapter, "kohya")
    # ComfyUI reads both prefixes; tests/cards/test_export_in_comfyui.py asks it about every layer.
    prefixes = {name: kind.layer_names.kohya_prefix for name, kind in FAMILIES.items() if kind.layer_names.kohya_prefix}
    prefix = prefixes.get(config.denoiser)
    if prefix is None:
        raise AdapterError(
            f"the form kohya has names for the layers of {', '.join(prefixes)}, and this adapter is for "
            f"{config.denoiser}: a tool would find no layer of it",
            advice="Export as comfyui or peft.",
        )
    tensors: dict[str, Tensor] = {}
    for module in lora_modules(adapter.lora):
        name = prefix + module.replace(".", "_")
        for side, arm in (("A", "down"), ("B", "up")):
            tensors[f"{name}.lora_{arm}.weight"] = adapter.lora[lora_key(config.component, module, side)].contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(config.rank))
    header = {"ss_network_module": "networks.lora", **_header(adapter, {"form": "kohya"})}
    return {f"{config.name}-kohya.safetensors": safetensors_bytes(tensors, header)}


def _peft(adapter: Adapter) -> dict[str, bytes]:
    """One folder per denoiser, because peft wraps one model."""
    config = adapter.config
    components = [part for part in (config.component, config.component + SECOND) if component_lora(adapter.lora, part)]
    files: dict[str, bytes] = {}
    for component in components:
        lora = component_lora(adapter.lora, component)
        folder = "" if len(components) == 1 else f"{component}/"
        named = {f"base_model.model.{key.removeprefix(f'{component}.')}": t.contiguous() for key, t in lora.items()}
        settings = {
            "peft_type": "LORA",
            "base_model_name_or_path": config.base_model.id,
            "revision": config.base_model.revision,
            "r": config.rank,
            "lora_alpha": config.rank,
            "bias": "none",
            "inference_mode": True,
            # One expression for whole names: peft takes a list's entries for endings, and "proj_out" ends many names.
            "target_modules": "|".join(re.escape(module) for module in lora_modules(lora)),
        }
        files[f"{folder}adapter_config.json"] = (json.dumps(settings, indent=2) + "\n").encode()
        files[f"{folder}adapter_model.safetensors"] = safetensors_bytes(named, _header(adapter, {"form": "peft"}))
    return files


def _merged(adapter: Adapter, asked: float | None, law: str | None, alpha: float | None) -> dict[str, bytes]:
    config = adapter.config
    scale = strength = config.strength if asked is None else float(asked)
    said: dict[str, Any] = {}
    tilt_map = None if config.dial is None else config.dial.map_for("single")
    if tilt_map is not None and law is None and alpha is None:
        lowest, highest = tilt_map.lowest / config.tilt, tilt_map.highest / config.tilt
        strength = min(max(strength, lowest), highest)
        if asked is not None and not math.isclose(asked, strength, rel_tol=0.02):  # so near that it is the same
            raise AdapterError(
                f"one pass of this adapter reaches strengths from {lowest:.3g} to {highest:.3g}, and strength is "
                f"{asked:g}: a merged LoRA would be no stronger than at that end",
                advice=f"Give --strength {strength:.3g}, or let a law choose the weight (--law nft).",
            )
        scale = weight_of(tilt_map, torch.tensor(strength * config.tilt, dtype=torch.float64)).item()
        said = {"calibrated": True}
    elif config.kind == "positive":
        law = "nft" if law is None else law
        alpha = config.base_rate if alpha is None else alpha
        if alpha is None:
            raise AdapterError(
                "this positive adapter does not say its base_rate, so there is no one alpha to scale its LoRA by",
                advice="Give alpha (--alpha), the share of the base model's pictures that the reward likes, say 0.4.",
            )
        scale = law_scale(alpha, strength * config.tilt, law).item()
        said = {"law": law, "alpha": alpha}
    lora = {
        key: ((tensor.double() * scale).to(tensor.dtype) if key.endswith("lora_B.weight") else tensor).contiguous()
        for key, tensor in adapter.lora.items()
    }
    parts = [part for part in (config.component, config.component + SECOND) if component_lora(lora, part)]
    facts: dict[str, Any] = {}
    for part in parts:
        facts |= {f"{part}.r": config.rank, f"{part}.lora_alpha": config.rank}
        facts[f"{part}.target_modules"] = lora_modules(component_lora(lora, part))
    said = {"form": "merged", "strength": strength, **said, "scale": scale}
    header = {**_header(adapter, said), LORA_METADATA_KEY: json.dumps(facts)}
    return {f"{config.name}-strength-{strength:g}.safetensors": safetensors_bytes(lora, header)}


FORMS: dict[str, Callable[[Adapter], dict[str, bytes]]] = {
    "comfyui": _comfyui,
    "kohya": _kohya,
    "peft": _peft,
    "merged": lambda adapter: export(adapter, "merged"),
}


def _one_denoiser(adapter: Adapter, form: str) -> None:
    second = adapter.config.component + SECOND
    if component_lora(adapter.lora, second):
        raise AdapterError(f"the adapter changes two denoisers, and the form {form} has names for one; export as peft")


def _header(adapter: Adapter, said: dict[str, Any]) -> dict[str, str]:
    """The header of a file. It has no key `diffusion_nft`, which marks files that guidance can use."""
    config = adapter.config
    return {
        "format": "pt",
        EXPORT_HEADER_KEY: json.dumps({"name": config.name, "kind": config.kind, **said}),
        "modelspec.title": config.name,
        "modelspec.license": config.licence,
        "modelspec.architecture": f"{config.denoiser}/lora",
        "ss_base_model_version": config.base_model.id,
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(config.rank),
    }
