"""Names of LoRA tensors in our own files: diffusers' form, peft's, and that of our single file for ComfyUI.

The key formats of other tools are listed in foreign/key_formats.py; foreign/rename.py finds their layers in diffusers'
models and comfy_nodes/match.py in ComfyUI's. hub_cards/export.py writes files for other tools.

The form the project works in, and writes to disk, is diffusers' own:

    <component>.<module>.lora_A.weight    (rank, in) or (rank, in, kh, kw)
    <component>.<module>.lora_B.weight    (out, rank) or (out, rank, 1, 1)

such as transformer.transformer_blocks.0.attn.to_q.lora_A.weight, with the LoRA's own scale lora_alpha / rank multiplied
into B, so that the change of a layer is B @ A and nothing else. Most tools assume scale 1 when they find no alpha; a
LoRA of rank 32 and lora_alpha 64, saved without its alpha, loads at half strength there. With the scale in B
it is equally strong everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..errors import AdapterError
from .names import HEAD_PREFIX, PEFT_PREFIX

SECOND = "_2"  # what the name of a pipeline's second denoiser ends in: transformer_2 of Wan 2.2
_LORA_KEY = re.compile(r"(?P<path>[^.]+(?:\.[^.]+)+)\.lora_(?P<side>[AB])\.weight")
_PEFT_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")


def lora_key(component: str, module: str, side: str) -> str:
    """The diffusers key of one tensor: side is "A" or "B"."""
    return f"{component}.{module}.lora_{side}.weight"


def split_lora_key(key: str) -> tuple[str, str, str] | None:
    """(component, module, side) of a diffusers LoRA key; None if the key is of another form."""
    match = _LORA_KEY.fullmatch(key)
    if match is None:
        return None
    component, _, module = match["path"].partition(".")
    return component, module, match["side"]


def lora_modules(lora: Iterable[str]) -> list[str]:
    """The modules, without the component, that a diffusers-keyed LoRA changes; sorted, each once."""
    parts = (split_lora_key(key) for key in lora)
    return sorted({part[1] for part in parts if part is not None})


def component_lora(lora: Mapping[str, Tensor], component: str) -> dict[str, Tensor]:
    """The tensors of one part of the pipeline, out of a diffusers-keyed LoRA that may change several."""
    return {key: tensor for key, tensor in lora.items() if key.startswith(f"{component}.")}


def lora_from_peft(
    state_dict: Mapping[str, Tensor], alpha: float, rank: int, component: str = "transformer"
) -> dict[str, Tensor]:
    """A peft state dict in diffusers' names, the scale baked into B:  B <- (alpha / rank) B.

    Args:
        state_dict: what `peft.get_peft_model_state_dict` returns for a denoiser, with or without peft's
            "base_model.model." in front and an adapter's name inside.
        alpha: peft's `lora_alpha`, > 0.
        rank: peft's `r`, the same in every layer.
        component: the pipeline's part that the denoiser is, default "transformer".

    Returns:
        New tensors, detached, on the CPU, contiguous, in their own dtype (the product is taken in fp64).

    Raises:
        AdapterError: nothing in it, a tensor that is not a LoRA's A or B (DoRA, biases, text encoders), or a layer of
            another rank.
    """
    if not state_dict:
        raise AdapterError(
            "the peft state dict is empty: no LoRA layer was found; is the adapter injected and trained?"
        )
    if not alpha > 0 or rank < 1:
        raise AdapterError(f"lora_alpha is {alpha!r} and rank {rank!r}, expected both above zero")
    scale = alpha / rank
    lora: dict[str, Tensor] = {}
    faults: list[str] = []
    for key, tensor in state_dict.items():
        match = _PEFT_KEY.fullmatch(key.removeprefix(PEFT_PREFIX))
        if match is None:
            faults.append(f"{key}: not a LoRA's A or B; only plain LoRA can be kept (no DoRA, no trained biases)")
            continue
        value = tensor.detach()
        found = 0 if value.ndim < 2 else value.shape[0] if match["side"] == "A" else value.shape[1]
        if found != rank:
            faults.append(f"{key}: shape {tuple(value.shape)} is of rank {found}, expected {rank}")
            continue
        if match["side"] == "B" and scale != 1:
            value = (value.double() * scale).to(value.dtype)
        name = lora_key(component, match["module"], match["side"])
        if name in lora:
            faults.append(f"{key}: a second tensor for {name}; give one adapter at a time")
        lora[name] = value.to("cpu", copy=True).contiguous()
    if faults:
        raise AdapterError("the peft state dict is not one plain LoRA", faults)
    return lora


def lora_to_comfyui(lora: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The same LoRA with one `<component>.<module>.alpha` per layer, equal to `rank`.

    ComfyUI multiplies by alpha / rank where it finds an alpha, so it applies exactly B @ A. Of a U-Net's attention
    layers it knows the names diffusers once gave them, with "processor" in them.
    """
    named = {}
    for key, tensor in lora.items():
        part = split_lora_key(key)
        if part is None:
            named[key] = tensor
            continue
        component, module, side = part
        if component == "unet":
            module = module.replace(".to_", ".processor.to_").removesuffix(".0") if ".to_" in module else module
        named[lora_key(component, module, side)] = tensor
        named[f"{component}.{module}.alpha"] = torch.tensor(float(rank))
    return named


def lora_from_comfyui(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `lora_to_comfyui` as to names; alphas stay."""
    return {_without_processor(key): tensor for key, tensor in tensors.items()}


def _without_processor(key: str) -> str:
    """unet.X.processor.to_out.alpha as unet.X.to_out.0.alpha; any other key as it is."""
    if not key.startswith("unet.") or ".processor.to_" not in key:
        return key
    key = key.replace(".processor.to_", ".to_")
    return re.sub(r"\.to_out(?=\.(lora_[AB]\.weight|alpha)$)", ".to_out.0", key)


def head_to_comfyui(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The alpha head's tensors under the prefix that sets them apart from the LoRA in a single file."""
    return {HEAD_PREFIX + key: tensor for key, tensor in state_dict.items()}


def comfyui_to_head(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The alpha head's tensors out of a single file; empty where it holds none."""
    return {key.removeprefix(HEAD_PREFIX): tensor for key, tensor in tensors.items() if key.startswith(HEAD_PREFIX)}


def strip_injected(name: str) -> str | None:
    """The name a parameter has without peft and torch.compile around it; None if it belongs to an injected LoRA."""
    parts = [part for part in name.split(".") if part not in ("base_layer", "_orig_mod")]
    return None if any(part.startswith("lora_") for part in parts) else ".".join(parts)
