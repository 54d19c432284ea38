"""Puts one LoRA beside a denoiser's weights, switches it on and off, and takes it out without a trace.

The LoRA is injected through diffusers and peft under a name of its own and left out of the active set, so whoever else
uses the denoiser sees no change. peft's own switches are not used: `enable_adapters` would also switch other people's
LoRAs and turns `requires_grad` on. A switch is two attributes per layer, set and put back.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..adapters.base_check import check_lora_modules
from ..adapters.keys import lora_key
from ..errors import AdapterError
from ..families.registry import unwrap_compiled
from .lora_loading import attach_lora

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer


def tuner_layers(denoiser: nn.Module) -> dict[str, BaseTunerLayer]:
    """All layers that peft has wrapped, by name, whoever asked for it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in denoiser.named_modules() if isinstance(module, BaseTunerLayer)}


def adapter_names(denoiser: nn.Module) -> set[str]:
    """The names of all LoRAs on a denoiser."""
    return {name for layer in tuner_layers(denoiser).values() for name in layer._get_available_adapters()}


def inject_lora(denoiser: nn.Module, lora: Mapping[str, Tensor], component: str, *, pipe: Any = None) -> str:
    """Put the LoRA on the denoiser, inactive; returns the adapter name it got ("nft" if that is free).

    Active adapters, their scales and every requires_grad stay as they are. `pipe` lets diffusers take CPU offloading
    off and on again around the injection.

    Raises:
        AdapterError: a LoRA key without a layer, or layers left without their LoRA; the denoiser is as before.
    """
    denoiser = unwrap_compiled(denoiser)
    expected = check_lora_modules(lora, denoiser, component)
    taken = adapter_names(denoiser) | set(getattr(denoiser, "peft_config", ()))
    name = next(n for n in ("nft", *(f"nft_{i}" for i in range(2, len(taken) + 3))) if n not in taken)
    wanted_gradients = [(parameter, parameter.requires_grad) for parameter in denoiser.parameters()]
    active = {id(layer): list(layer.active_adapters) for layer in tuner_layers(denoiser).values()}
    try:
        with warnings.catch_warnings():
            # peft warns about a second adapter as such; having one beside the user's own is the point here.
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            attach_lora(denoiser, lora, component, name, pipe)
        layers = tuner_layers(denoiser).values()
        carrying = [layer for layer in layers if name in layer._get_available_adapters()]
        if len(carrying) != expected:
            raise AdapterError(
                f"the adapter has {expected} LoRA layers but only {len(carrying)} of them arrived on "
                f"{type(denoiser).__name__}. Report this with the versions of diffusers and peft."
            )
    except BaseException:
        _put_back(denoiser, active)
        remove_lora(denoiser, name)
        raise
    finally:
        for parameter, requires_grad in wanted_gradients:
            parameter.requires_grad_(requires_grad)
    _put_back(denoiser, active)
    _keep_out_of_fp8(denoiser, name, lora, component)
    for layer in carrying:
        layer.set_requires_grad(name, False)
        if id(layer) not in active:  # wrapped just now, and in training mode, as new modules are
            layer.train(layer.get_base_layer().training)  # type: ignore[attr-defined]
    return name


def remove_lora(denoiser: nn.Module, name: str) -> None:
    """Take the LoRA out. Layers without any other LoRA become the very modules they were before peft wrapped them.

    Raises:
        AdapterError: the LoRA is fused into the weights.
    """
    denoiser = unwrap_compiled(denoiser)
    layers = tuner_layers(denoiser)
    refuse_fused(name, [layer for layer in layers.values() if name in layer.merged_adapters])
    for path, layer in layers.items():
        # Out of the active set first: deleting an active adapter makes peft activate another one.
        layer._active_adapter = [other for other in layer.active_adapters if other != name]
        layer.delete_adapter(name)
        if not layer._get_available_adapters():
            _replace(denoiser, path, layer.base_layer)  # type: ignore[attr-defined]
    configs = getattr(denoiser, "peft_config", {})
    configs.pop(name, None)
    if not tuner_layers(denoiser):
        # What peft and diffusers leave on a model that has carried a LoRA.
        for attribute in ("peft_config", "_hf_peft_config_loaded"):
            denoiser.__dict__.pop(attribute, None)


@contextmanager
def without_wrappers(denoiser: nn.Module) -> Iterator[None]:
    """The denoiser with its original layers in their places, for saving: its state dict has the stock keys."""
    denoiser = unwrap_compiled(denoiser)
    layers = tuner_layers(denoiser)
    for path, layer in layers.items():
        _replace(denoiser, path, layer.get_base_layer())
    try:
        yield
    finally:
        for path, layer in layers.items():
            _replace(denoiser, path, layer)  # type: ignore[arg-type]


class LoraSwitch:
    """Turns our LoRAs on and off for single forwards; what else is active stays active.

    Made anew for each call of the pipeline: the user may have loaded or unloaded LoRAs in between.

    Args:
        denoiser: carries the LoRAs.
        expected: number of layers of each of our LoRAs, by the name it was injected under.

    Raises:
        AdapterError: a LoRA is gone; something is fused into a layer that carries one (peft would ignore the LoRA
            there, or v_old would contain it); or the same LoRA is loaded a second time and active.
    """

    def __init__(self, denoiser: nn.Module, expected: Mapping[str, int]) -> None:
        layers = tuner_layers(denoiser).values()
        self._names = frozenset(expected)
        self._layers: dict[str, list[Any]] = {
            name: [layer for layer in layers if name in layer._get_available_adapters()] for name in expected
        }
        for name, number in expected.items():
            if len(self._layers[name]) != number:
                raise AdapterError(
                    f"the {name} LoRA is on {len(self._layers[name])} layers of {type(denoiser).__name__}, expected "
                    f"{number}: LoRAs were unloaded or deleted since. Call load_nft_adapter again."
                )
            refuse_fused(name, [layer for layer in self._layers[name] if layer.merged])
            _refuse_second_copy(name, self._layers[name], self._names)
        self._saved: dict[int, tuple[Any, Any, bool, dict[str, float]]] = {}

    def only(self, *names: str, call_scale: float = 1.0) -> None:
        """Switch on these of our LoRAs and switch off the others. Without any name this is the base pass, v_old.

        `call_scale` is what diffusers will multiply every active LoRA's scale by in the forward: it is meant for the
        user's LoRAs, so ours are divided by it beforehand.
        """
        self._save()
        for layer, active, disabled, _ in self._saved.values():
            here = [name for name in names if name in layer.scaling]
            if here and disabled:  # the user's own LoRAs are switched off, and stay off
                _set(layer, _active_adapter=here, _disable_adapters=False)
            elif here or not self._names.isdisjoint(layer.active_adapters) or layer._active_adapter is not active:
                others = [other for other in _listed(active) if other not in self._names]
                _set(layer, _active_adapter=[*others, *here], _disable_adapters=disabled)
            for name in here:
                layer.scaling[name] = layer.lora_alpha[name] / layer.r[name] / call_scale

    def restore(self) -> None:
        """Put everything back as it was before the first `only`; does nothing if nothing was changed."""
        for layer, active, disabled, scaling in self._saved.values():
            if layer._active_adapter is not active:
                _set(layer, _active_adapter=active, _disable_adapters=disabled)
                layer.scaling.update(scaling)
        self._saved = {}

    def inner(self, name: str) -> list[nn.Module]:
        """The modules whose output is as wide as this LoRA's rank: its A matrices."""
        return [layer.lora_A[name] for layer in self._layers[name]]

    def _save(self) -> None:
        if not self._saved:
            for layer in [layer for layers in self._layers.values() for layer in layers]:
                ours = {name: value for name, value in layer.scaling.items() if name in self._names}
                self._saved[id(layer)] = (layer, layer._active_adapter, layer._disable_adapters, ours)


def _listed(active: str | list[str]) -> list[str]:
    return [active] if isinstance(active, str) else active


def _set(layer: Any, **attributes: Any) -> None:
    """As setattr, without nn.Module's search among parameters and buffers: this runs for every layer at every step."""
    for name, value in attributes.items():
        object.__setattr__(layer, name, value)


def _put_back(denoiser: nn.Module, active: Mapping[int, list[str]]) -> None:
    """Active sets as before an injection; newly wrapped layers get the one the model as a whole had."""
    everywhere = next(iter(active.values()), [])
    for layer in tuner_layers(denoiser).values():
        layer._active_adapter = list(active.get(id(layer), everywhere))


def refuse_fused(name: str, layers: list[BaseTunerLayer]) -> None:
    """Raise AdapterError if there are layers, with a LoRA `name`, that have something fused into them."""
    if layers:
        fused = sorted({adapter for layer in layers for adapter in layer.merged_adapters})
        raise AdapterError(
            f"LoRA {', '.join(fused)} is fused into {len(layers)} layers that carry {name}; guidance needs them apart. "
            "Call unfuse_lora() on the pipeline first."
        )


def _refuse_second_copy(name: str, layers: list[Any], ours: frozenset[str]) -> None:
    """Raise AdapterError if the user has loaded this very LoRA and it is on: v_old would contain it."""
    active = {other for layer in layers if not layer.disable_adapters for other in layer.active_adapters} - ours
    for other in sorted(active):
        both = [layer for layer in layers if other in layer._get_available_adapters() and layer.scaling.get(other)]
        if both and all(_same_matrices(layer, name, other) for layer in both):
            raise AdapterError(
                f"the LoRA {other} is the adapter's own LoRA, loaded a second time and active, so the base model would "
                f'contain it already. Guidance switches the LoRA itself: call delete_adapters("{other}") on the '
                "pipeline, or unload_lora_weights() and load_nft_adapter again."
            )


def _same_matrices(layer: Any, name: str, other: str) -> bool:
    for side in (layer.lora_A, layer.lora_B):
        one, two = side[name].weight, side[other].weight
        # On the meta device there is nothing to look at: sequential offloading keeps the numbers elsewhere.
        if one.is_meta or two.is_meta or one.shape != two.shape or not torch.equal(one, two.to(one)):
            return False
    return True


def _keep_out_of_fp8(denoiser: nn.Module, name: str, lora: Mapping[str, Tensor], component: str) -> None:
    """Matrices that were stored in fp8 get their own numbers back, in the dtype the model computes in.

    peft gives a LoRA the dtype of the layer's weight. Under layerwise casting that is fp8, and only diffusers' hooks,
    which are on the layers that were there before, convert fp8 weights for computing.
    """
    for path, layer in tuner_layers(denoiser).items():
        for side, matrices in (("A", getattr(layer, "lora_A", {})), ("B", getattr(layer, "lora_B", {}))):
            weight = matrices[name].weight if name in matrices else None
            if weight is not None and weight.is_floating_point() and weight.dtype.itemsize == 1:
                dtype: Any = denoiser.dtype
                # A copy: a swap writes into it, and the adapter keeps its own.
                weight.data = lora[lora_key(component, path, side)].to(weight.device, dtype, copy=True)


def _replace(denoiser: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, child = path.rpartition(".")
    setattr(denoiser.get_submodule(parent), child, module)
