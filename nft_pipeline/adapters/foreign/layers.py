"""LoRA tensors as other tools write them, read into pairs of A and B at scale 1.

    layers = read_layers(tensors)          # pairs under the tool's own names, alpha beside them
    baked = bake(layers, peft_config)      # the tool's scale multiplied into B

A layer's own `.alpha` tensor gives the scale alpha / rank (kohya, ComfyUI, ai-toolkit), a peft config its own rule
(peft_scale.py), and with neither it is 1, as all these tools have it. Scale comes before renaming (rename.py): a
converter cannot lose what is not there any more, and diffusers' own drop a few alphas.

What the tools write before and behind a layer's name is listed in key_formats.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import AdapterError
from ..names import PEFT_PREFIX
from .key_formats import key_pattern, sides
from .peft_scale import scale_of

_TEXT_ENCODER = re.compile(
    r"(base_model\.model\.)?(text_encoder|text_model|lora_te|te\d?_|cond_stage_model|conditioner)"
)
_TEXT_PART = re.compile(r"(?:base_model\.model\.)?((?:lora_)?te\d?(?=_)|text_encoders\.[^.]+|[^.]+)")
_REFUSED = {
    "a DoRA, whose change is no plain B @ A": ("dora_scale", "lora_magnitude_vector"),
    "a LyCORIS adapter (LoHa)": ("hada_",),
    "a LyCORIS adapter (LoKr)": ("lokr_",),
    "a LyCORIS adapter (OFT)": ("oft_",),
    "a LyCORIS adapter (Tucker)": ("lora_mid",),
    "a LyCORIS adapter (GLoRA)": (".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight"),
    "a trained weight or bias of the base model itself": (".diff", ".diff_b", ".bias", "_norm", "set_weight"),
}


@dataclass(frozen=True)
class Layer:
    """One layer of a LoRA: A (rank, in) or 4-D, B (out, rank) or 4-D, and alpha where the file gives one."""

    a: Tensor
    b: Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """The inner dimension of B @ A."""
        return self.a.shape[0]


def read_layers(tensors: Mapping[str, Tensor]) -> dict[str, Layer]:
    """The layers of a LoRA under the names the file gives them, without their suffixes.

    Args:
        tensors: with a key format of `KEY_FORMATS`, and ".alpha".

    Raises:
        AdapterError: every tensor that is of a text encoder, of another kind of adapter, or half of a pair.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    refused: set[str] = set()  # paths of layers of which a tensor is refused
    adapters: set[str] = set()
    faults: list[str] = []
    pattern, side_of = key_pattern(), sides()
    for key, tensor in tensors.items():
        match = pattern.fullmatch(key)
        if _TEXT_ENCODER.match(key):
            faults.append(
                f"{key} belongs to a text encoder: the prompt is encoded once for both passes, so v_old would see it "
                "too"
            )
        elif match is None or "lora_mid" in key:
            faults.append(f"{key} is {_what(key)}")
            refused.add(key.rsplit(".", 2)[0] if key.endswith(".weight") else key.rpartition(".")[0])
        elif match["alpha"] is not None:
            parts.setdefault(match["alpha"], {})["alpha"] = tensor
        else:
            adapters |= {match["adapter"]} - {None}
            parts.setdefault(match["path"], {})[side_of[match["part"] or match["named"]]] = tensor
    if len(adapters) > 1:
        faults.append(f"it holds the adapters {', '.join(sorted(adapters))}; give a file with one of them")
    layers: dict[str, Layer] = {}
    for path, found in parts.items():
        if found.keys() == {"alpha"} and path in refused:
            continue  # the alpha of what is refused above
        fault = _pair_fault(path, found)
        if fault is not None:
            faults.append(fault)
            continue
        alpha = found.get("alpha")
        layers[path] = Layer(found["A"], found["B"], None if alpha is None else float(alpha))
    if faults or not layers:
        raise AdapterError(
            f"it is not one plain LoRA for a denoiser ({len(layers)} LoRA layers among {len(tensors)} tensors)",
            faults,
            "Train or export the denoiser's LoRA alone, as a plain LoRA (peft, kohya or diffusers form). What is no "
            "LoRA can be merged into its base model by its own tool, and `diffusion-nft extract` makes a LoRA of that.",
        )
    return layers


def without_text_encoder(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The tensors that are of no text encoder, and how many layers of each text encoder are not among them.

    Args:
        tensors: a LoRA file's.

    Returns:
        The rest; and counts by the name of the part in the file, such as {"lora_te1": 72}.
    """
    rest: dict[str, Tensor] = {}
    paths: dict[str, set[str]] = {}
    pattern = key_pattern()
    for key, tensor in tensors.items():
        if _TEXT_ENCODER.match(key) is None:
            rest[key] = tensor
            continue
        match = pattern.fullmatch(key)
        path = key.rpartition(".")[0] if match is None else match["path"] or match["alpha"]
        part = _TEXT_PART.match(key)
        paths.setdefault(part[1] if part else "text encoder", set()).add(path)
    return rest, {part: len(inside) for part, inside in paths.items()}


def _what(key: str) -> str:
    for what, marks in _REFUSED.items():
        if any(mark in key if not mark.startswith(".") else key.endswith(mark) for mark in marks):
            return what
    suffixes = ", ".join(f'"....{part}.weight"' for part, side in sides().items() if side == "A")
    return f'no part of a LoRA, expected {suffixes}, their partners or "....alpha"'


def _pair_fault(path: str, found: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the tensors of one layer, if anything."""
    missing = [side for side in "AB" if side not in found]
    if missing:
        return f"{path} has {' and '.join(sorted(found))} but no {' and no '.join(missing)}; the file is incomplete"
    a, b = found["A"], found["B"]
    if a.ndim not in (2, 4) or b.ndim != a.ndim or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        return f"{path} has A {tuple(a.shape)} and B {tuple(b.shape)}, expected (rank, in) and (out, rank)"
    alpha = found.get("alpha")
    if alpha is not None and (alpha.numel() != 1 or not torch.isfinite(alpha.float()).all() or float(alpha) <= 0):
        return (
            f"{path}.alpha is {alpha.flatten()[:4].tolist()}, expected one number above zero: the scale is alpha / rank"
        )
    return None


def bake(layers: Mapping[str, Layer], peft_config: Mapping[str, Any] | None = None) -> dict[str, Layer]:
    """The same LoRA at scale 1: B <- scale * B, alpha gone. A baked B is fp32: fp16 would lose small numbers.

    Args:
        layers: see `read_layers`.
        peft_config: fields of the LoraConfig that came with them, without `peft_scale.config_faults`; None for none.

    Raises:
        AdapterError: ranks in config and tensors, or scales in config and alpha tensors, contradict each other.
    """
    scales = scales_of(layers, peft_config)
    return {
        path: Layer(layer.a, layer.b if scales[path] == 1 else (layer.b.double() * scales[path]).float())
        for path, layer in layers.items()
    }


def scales_of(layers: Mapping[str, Layer], peft_config: Mapping[str, Any] | None = None) -> dict[str, float]:
    """The scale of each layer, that its tool multiplies B @ A by. Arguments and errors as `bake`."""
    scales: dict[str, float] = {}
    faults: list[str] = []
    for path, layer in layers.items():
        scale = 1.0 if layer.alpha is None else layer.alpha / layer.rank
        if peft_config is not None:
            said, fault = scale_of(peft_config, path.removeprefix(PEFT_PREFIX), layer.rank)
            if fault is None and layer.alpha is not None and abs(said - scale) > 1e-6 * said:
                fault = f"{path} has two scales: {scale:g} by its alpha tensor, {said:g} by its config"
            faults += [] if fault is None else [fault]
            scale = said
        scales[path] = scale
    if faults:
        raise AdapterError("the scale of the LoRA is not certain", faults, "Ask its author for r and lora_alpha.")
    return scales


def one_rank(layers: Mapping[str, Layer]) -> tuple[dict[str, Layer], int]:
    """The same LoRA with one rank in all layers, the largest: A gets rows, B columns of zeros. B @ A is unchanged."""
    rank = max(layer.rank for layer in layers.values())
    padded = {}
    for path, layer in layers.items():
        more = rank - layer.rank
        a = torch.cat([layer.a, layer.a.new_zeros(more, *layer.a.shape[1:])])
        b = torch.cat([layer.b, layer.b.new_zeros(layer.b.shape[0], more, *layer.b.shape[2:])], dim=1)
        padded[path] = Layer(a, b)
    return padded, rank
