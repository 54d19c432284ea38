"""Layers of a LoRA under the names of diffusers' modules, whatever tool named them.

Names are looked up in the denoiser: diffusers' names with any of the usual prefixes, with dots or with underscores.
Names of the original checkpoints (SDXL's input_blocks, FLUX's double_blocks) go through diffusers' converter, which is
watched: a layer that goes in and does not come out is a fault. For a family that diffusers has no converter for (Stable
Diffusion 3), the family says which modules an original layer is (`nft_pipeline.families.layer_names`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import AdapterError
from ...families.layer_names import LayerNames, Pieces
from ...families.registry import listed_family, unwrap_compiled
from ..base_check import check_lora_modules
from ..keys import lora_key, strip_injected
from ..names import PEFT_PREFIX
from .key_formats import dotted_prefixes, underscored_prefixes, written_as
from .layers import Layer, one_rank, read_layers


def name_as_diffusers(
    layers: Mapping[str, Layer], denoiser: nn.Module, component: str, pipeline_class: Any = None
) -> dict[str, Tensor]:
    """The LoRA under diffusers keys, one rank, every layer found in the denoiser and of the right shape.

    Args:
        layers: baked.
        denoiser: the loaded model's transformer or unet, with or without LoRAs injected.
        component: its name in the pipeline, the first part of the keys.
        pipeline_class: a diffusers pipeline class whose `lora_state_dict` knows the family's other names; None where
            there is none.

    Raises:
        AdapterError: layers that are not in the model; all of them are named, none is left out in silence.
    """
    inner = unwrap_compiled(denoiser)
    names = {strip_injected(name) for name, _ in inner.named_modules()} - {None, ""}
    find = _finder({name for name in names if name is not None}, component)
    origin = {path: path for path in layers}
    count, note = len(layers), ""
    if any(find(path) is None for path in layers):
        layers, origin, note = _convert(layers, inner, pipeline_class)
    found = {path: find(path) for path in layers}
    unknown = {origin[path] for path, name in found.items() if name is None}
    lost = sorted(unknown | (set(origin.values()) - {origin[path] for path in found}))
    model = type(inner).__name__
    if lost:
        raise AdapterError(
            f"{count - len(lost)} of {count} LoRA layers match the loaded {model}",
            [f"{path}: the model has no such module" for path in lost],
            f"The model has {_examples(inner)}. {note}Load the base model the LoRA was trained on.",
        )
    padded, _ = one_rank(layers)
    lora: dict[str, Tensor] = {}
    for path, layer in padded.items():
        for side, tensor in (("A", layer.a), ("B", layer.b)):
            key = lora_key(component, str(found[path]), side)
            if key in lora:
                raise AdapterError(f"two layers of the file are {found[path]} of the model; the second one is {path}")
            lora[key] = tensor.contiguous()
    try:
        check_lora_modules(lora, inner, component)
    except AdapterError as error:
        advice = "Load the base model the LoRA was trained on."
        raise AdapterError(f"layers of the LoRA do not fit the loaded {model}", error.faults, advice) from None
    return lora


def _finder(names: set[str], component: str) -> Callable[[str], str | None]:
    """Looks a layer up among the denoiser's module names, whatever is written before it."""
    underscored = {name.replace(".", "_"): name for name in names}

    def find(path: str) -> str | None:
        path = path.removeprefix(PEFT_PREFIX)
        for prefix in ("", f"{component}.", *dotted_prefixes()):
            if path.startswith(prefix) and path[len(prefix) :] in names:
                return path[len(prefix) :]
        for prefix in underscored_prefixes():
            if path.startswith(prefix) and path[len(prefix) :] in underscored:
                return underscored[path[len(prefix) :]]
        return None

    return find


def _examples(denoiser: nn.Module) -> str:
    names = [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return f"{len(names)} linear layers and convolutions, such as {', '.join(names[-2:])}"


def _convert(
    layers: Mapping[str, Layer], denoiser: nn.Module, pipeline_class: Any
) -> tuple[dict[str, Layer], dict[str, str], str]:
    """From the names of the original checkpoints to those of diffusers' modules.

    Returns:
        The layers that could be renamed; for each its old name, and for each lost layer its own name; and the messages
        of diffusers.
    """
    family = listed_family(denoiser)
    facts = LayerNames() if family is None else family.layer_names
    unchanged = dict(layers), {path: path for path in layers}
    if facts.original is not None:
        made: dict[str, Layer] = {}
        origin: dict[str, str] = {}
        for path, layer in layers.items():
            for name, part in _cut(path, layer, facts.original(_flat(path), denoiser)).items():
                if name in made:
                    raise AdapterError(f"{path} and {origin[name]} of the file are both {name} of the model")
                made[name], origin[name] = part, path
        return made, origin, ""
    if not hasattr(pipeline_class, "lora_state_dict"):
        return *unchanged, ""
    spell = _kohya if facts.spelling == "kohya" else _as_written
    arguments = {facts.config_argument: denoiser.config} if facts.config_argument else {}

    def run(tensors: dict[str, Tensor]) -> dict[str, Layer]:
        from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

        renamed = pipeline_class.lora_state_dict(tensors, **arguments)
        return read_layers(convert_unet_state_dict_to_peft(renamed[0] if isinstance(renamed, tuple) else renamed))

    # First with numbers instead of weights: the i-th layer is all i, and what comes out tells which layers went in.
    paths = list(layers)
    numbers = {path: _filled(layers[path], float(i)) for i, path in enumerate(paths)}
    try:
        origin = {name: paths[int(part.b.flatten()[0])] for name, part in run(spell(numbers)).items()}
        made = run(spell(layers))
    except Exception as error:  # whatever error a converter raises: these are not the layers it is made for
        return *unchanged, f"(diffusers' converter: {str(error)[:300] or type(error).__name__}) "
    return made, origin | {path: path for path in paths if path not in origin.values()}, ""


def _filled(layer: Layer, number: float) -> Layer:
    return Layer(torch.tensor(number).expand(layer.a.shape), torch.tensor(number).expand(layer.b.shape))


def _kohya(layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """As kohya's trainers write it: underscores for dots. alpha is the rank, since the scale is baked."""
    tensors: dict[str, Tensor] = {}
    for path, layer in layers.items():
        name = "lora_unet_" + _flat(path)
        tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"] = layer.a, layer.b
        tensors[f"{name}.alpha"] = torch.tensor(float(layer.rank))
    return tensors


def _as_written(layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path, layer in layers.items():
        form = written_as(path)
        tensors[f"{path}.{form.a}.weight"], tensors[f"{path}.{form.b}.weight"] = layer.a, layer.b
        if form.underscored:  # converters of such names want an alpha
            tensors[f"{path}.alpha"] = torch.tensor(float(layer.rank))
    return tensors


def _flat(path: str) -> str:
    """A layer's name without prefix, with underscores for dots."""
    path = path.removeprefix(PEFT_PREFIX)
    for prefix in dotted_prefixes():
        path = path.removeprefix(prefix)
    path = path.replace(".", "_")
    return next((path.removeprefix(prefix) for prefix in underscored_prefixes() if path.startswith(prefix)), path)


def _cut(path: str, layer: Layer, pieces: Pieces | None) -> dict[str, Layer]:
    """One layer of an original checkpoint as diffusers' layers: A is shared, B is cut. Itself if it is none of them."""
    if pieces is None or layer.b.shape[0] % len(pieces.modules):
        return {path: layer}
    parts = layer.b.chunk(len(pieces.modules))
    if pieces.swapped:
        parts = (layer.b.roll(layer.b.shape[0] // 2, dims=0),)
    return {name: replace(layer, b=part) for name, part in zip(pieces.modules, parts, strict=True)}
