"""Finds the weight of a ComfyUI model that each layer of a LoRA changes, and the module that a head listens to.

No layer is dropped in silence.

ComfyUI has a map from the names that other tools give to layers to its own weights:

    "transformer.transformer_blocks.0.attn.to_q" -> ("diffusion_model....qkv.weight", (0, 0, 1536))

An entry is a weight, or a weight with the rows (dimension, start, number) that are meant, or both of these and a
function that reorders rows. Torch only; the map comes from the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from nft_pipeline.adapters.foreign.key_formats import dotted_prefixes, underscored_prefixes
from nft_pipeline.adapters.foreign.layers import Layer
from nft_pipeline.adapters.names import PEFT_PREFIX
from nft_pipeline.errors import AdapterError, GuidanceError
from nft_pipeline.families.registry import FAMILIES

from .delta import Target
from .reward_file import RewardFile

KeyMap = Mapping[str, Any]


def match_layers(
    layers: Mapping[str, Layer], key_map: KeyMap, model: nn.Module, *, shown: str, needs: str, loaded: str
) -> list[Target]:
    """Every layer's target in the model.

    Args:
        layers: scale baked in, under the names of their file.
        key_map: ComfyUI's, for this model.
        model: what the map's weights are relative to.
        shown: how errors call the adapter.
        needs: the base model it is for.
        loaded: the base model that is there.

    Raises:
        AdapterError: layers without a weight, or of other sizes. It says how many fit and names all that do not.
    """
    targets: list[Target] = []
    faults: list[str] = []
    taken: dict[tuple[str, int], str] = {}
    for path, layer in layers.items():
        found = _target(path, layer, key_map, model)
        if isinstance(found, str):
            faults.append(f"{path}: {found}")
        elif (found.module, found.start) in taken:
            faults.append(f"{path}: the layer {taken[found.module, found.start]} is the same one of the model")
        else:
            taken[found.module, found.start] = path
            targets.append(found)
    if faults or not targets:
        raise AdapterError(
            f"{shown} is for {needs}, and the loaded model is {loaded}: {len(targets)} of {len(layers)} LoRA layers "
            "fit",
            faults,
            "Load the model that the adapter is for, or a fine-tune of it, or take an adapter made for the model you "
            "have.",
        )
    return targets


def _target(path: str, layer: Layer, key_map: KeyMap, model: nn.Module) -> Target | str:
    """The target, or what is wrong."""
    entry = next((key_map[name] for name in _names(path) if name in key_map), None)
    if entry is None:
        return "the model has no such layer"
    weight, rows, order = (entry, None, None) if isinstance(entry, str) else (*entry, None)[:3]
    name = weight.removesuffix(".weight")
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return f"ComfyUI says it is {weight}, which is no layer of the loaded model"
    if rows is not None and rows[0] != 0:
        return f"ComfyUI says it is {rows} of {weight}; only parts of the first dimension can be switched"
    return _fit(path, layer, name, module, rows, order)


def _fit(
    path: str,
    layer: Layer,
    name: str,
    module: nn.Module,
    rows: tuple[int, int, int] | None,
    order: Callable[[Tensor], Tensor] | None,
) -> Target | str:
    """A and B in the form the module needs: 4-D for a convolution, 2-D for a linear layer."""
    sizes = _sizes(module)
    if sizes is None:
        return f"{name} is a {type(module).__name__}, expected a linear layer or a 2-D convolution"
    out, inside = sizes
    a, b = layer.a, layer.b
    if a.ndim == 4 and len(inside) == 1:
        a = a.flatten(1)
    elif a.ndim == 2 and len(inside) == 3:
        a = a[:, :, None, None]
    b = b.flatten(1)
    expected = out if rows is None else rows[2]
    if tuple(a.shape[1:]) != inside or b.shape[0] != expected or (rows is not None and rows[1] + rows[2] > out):
        return (
            f"A {tuple(layer.a.shape)} and B {tuple(layer.b.shape)} do not fit, expected A (rank, "
            f"{', '.join(map(str, inside))}) and B ({expected}, rank)"
        )
    if order is not None:
        b = order(b)
    if len(inside) == 3:
        b = b[:, :, None, None]
    start, size = (0, None) if rows is None else rows[1:]
    return Target(name, a.contiguous(), b.contiguous(), start, size, path)


def _sizes(module: nn.Module) -> tuple[int, tuple[int, ...]] | None:
    """(outputs, shape of an input's weight); from attributes, since quantised layers pack their weights."""
    if isinstance(module, nn.Conv2d) and module.groups == 1:
        return module.out_channels, (module.in_channels, *module.kernel_size)
    inside, out = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(inside, int) and isinstance(out, int):
        return out, (inside,)
    return None


def _names(path: str) -> Iterator[str]:
    """What ComfyUI's map may call a layer."""
    yield path
    bare = path.removeprefix(PEFT_PREFIX)
    dotted = ("transformer.", *dotted_prefixes(), "unet.")
    for prefix in (*dotted, *underscored_prefixes()):
        bare = bare.removeprefix(prefix)
    for prefix in ("", *dotted):
        yield prefix + bare
    for prefix in (*underscored_prefixes(), "lycoris_"):
        yield prefix + bare.replace(".", "_")


def tap_in_comfyui(reward: RewardFile, model: nn.Module) -> str | None:
    """The module of a ComfyUI model whose input the adapter's head reads; None for an adapter without a head.

    Raises:
        GuidanceError: it is not known where ComfyUI computes what this head reads.
    """
    if reward.head is None:
        return None
    denoiser, tap = reward.config.denoiser, reward.head.config.tap
    family = FAMILIES.get(denoiser)
    if family is not None and family.comfyui_tap is not None and family.tap == tap:
        try:
            model.get_submodule(family.comfyui_tap)
            return family.comfyui_tap
        except AttributeError:
            pass
    known = ", ".join(sorted(f"{kind.tap} of {kind.denoiser}" for kind in FAMILIES.values() if kind.comfyui_tap))
    raise GuidanceError(
        f"the alpha head of {reward.config.name!r} reads {tap!r} of {denoiser}, and this version does not know "
        f'where ComfyUI computes that; it knows {known}. Set kind to "policy" to use the LoRA without its head.'
    )
