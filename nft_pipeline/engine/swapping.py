"""Puts an adapter's numbers in the place of a loaded one's: modules and tensors of the denoiser stay the same objects.

So what was compiled stays compiled. A swap looks at the layers of the LoRA and nothing else: their names stand in the
adapter that is loaded, and searching the whole model for them would take as long as all the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.keys import component_lora, lora_key, lora_modules
from ..errors import AdapterError
from ..families.registry import unwrap_compiled
from .injection import refuse_fused

_ADVICE = "Load it without hotswap."


@dataclass(frozen=True)
class SwappedMatrix:
    """An A or B matrix on the denoiser, the numbers it is to have, and those it was given before."""

    weight: Tensor
    new: Tensor
    old: Tensor


def planned_swap(
    denoiser: nn.Module, name: str, old: Mapping[str, Tensor], new: Mapping[str, Tensor], component: str
) -> list[SwappedMatrix]:
    """What `swap` is to do on one denoiser.

    Args:
        denoiser: carries the LoRA `old`.
        name: what `inject_lora` returned.
        old: diffusers-keyed; keys of other components are left out.
        new: the same of the LoRA to come, of the same layers, and of the loaded rank or a smaller one.
        component: the first part of the keys.

    Raises:
        AdapterError: the numbers do not fit into the matrices, or these are gone.
    """
    old, new = component_lora(old, component), component_lora(new, component)
    paths = lora_modules(new)
    if old.keys() != new.keys():
        there = lora_modules(old)
        differing = sorted(set(there) ^ set(paths))
        raise AdapterError(
            f"the adapter cannot take the loaded one's place: their LoRAs change different layers ({len(paths)} and "
            f"{len(there)}; one of them alone has {differing[0]})",
            advice=_ADVICE,
        )
    layers = {path: _layer(unwrap_compiled(denoiser), path, name) for path in paths}
    refuse_fused(name, [layer for layer in layers.values() if layer.merged])
    plan = []
    for path, layer in layers.items():
        for rank_dim, (side, matrices) in enumerate((("A", layer.lora_A), ("B", layer.lora_B))):
            weight, key = matrices[name].weight, lora_key(component, path, side)
            _check_size(weight, new[key], rank_dim, f"its {side} matrix of {path}")
            plan.append(SwappedMatrix(weight, new[key], old[key]))
    return plan


def swap(matrices: Iterable[SwappedMatrix]) -> None:
    """Write the new numbers over the old ones. If that fails half way, all matrices have the old ones again."""
    matrices = list(matrices)
    with torch.no_grad():
        try:
            for matrix in matrices:
                _write(matrix.weight, matrix.new)
        except BaseException:
            for matrix in matrices:
                _write(matrix.weight, matrix.old)
            raise


def _layer(denoiser: nn.Module, path: str, name: str) -> Any:
    try:
        layer: Any = denoiser.get_submodule(path)
    except AttributeError:
        layer = None
    if name not in getattr(layer, "lora_A", ()):
        raise AdapterError(
            f"the adapter cannot take the loaded one's place: the {name} LoRA is no longer on {path} of "
            f"{type(denoiser).__name__}, so LoRAs were unloaded or deleted since",
            advice=_ADVICE,
        )
    return layer


def _check_size(weight: Tensor, given: Tensor, rank_dim: int, shown: str) -> None:
    sizes = list(weight.shape)
    sizes[rank_dim] = min(sizes[rank_dim], given.shape[rank_dim])
    if list(given.shape) != sizes:
        raise AdapterError(
            f"the adapter cannot take the loaded one's place: {shown} has the shape {tuple(given.shape)}, the loaded "
            f"one's {tuple(weight.shape)}",
            advice="A smaller rank fits into a larger one: load the adapter of the largest rank first.",
        )
    if weight.is_meta:
        raise AdapterError(
            "the loaded adapter's numbers are elsewhere (sequential offloading), so others cannot take their place",
            advice="Load it without hotswap, or use another kind of offloading.",
        )


def _write(weight: Tensor, numbers: Tensor) -> None:
    """A smaller rank leaves zeros."""
    if numbers.shape == weight.shape:
        weight.copy_(numbers)
    else:
        weight.zero_()
        weight[tuple(map(slice, numbers.shape))].copy_(numbers)
