"""Loads an adapter's LoRAs onto the denoisers of a pipeline, checked, and takes them out without a trace.

A pipeline has one denoiser, or two of one class, one for high and one for low noise (Wan 2.2: `transformer` and
`transformer_2`); an adapter's keys say which of them it changes.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from ..adapters.keys import SECOND, component_lora, lora_modules
from ..errors import AdapterError, FamilyError
from ..families.ranks import refuse_split_weights
from ..families.registry import FAMILIES, check_pipeline, family_of, unwrap_compiled
from .injection import inject_lora, remove_lora
from .swapping import planned_swap, swap
from .terms import find_tap

if TYPE_CHECKING:
    from ..adapter import Adapter


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter and, by component, the names of its injected LoRAs; `old` has those of v_old's LoRA, if any."""

    adapter: Adapter
    loras: dict[str, str]
    old: dict[str, str]

    def injected(self) -> Iterator[tuple[str, str]]:
        """Every (component, name)."""
        yield from (*self.loras.items(), *self.old.items())


def load_adapter(pipe: Any, stock_class: type, adapter: Adapter) -> LoadedAdapter:
    """Check an adapter against a pipeline and its denoisers and inject its LoRAs, inactive. On an error nothing has
    changed.

    Args:
        pipe: the pipeline.
        stock_class: diffusers' class of the pipeline, for errors and for how it arranges its batches.
        adapter: the adapter.

    Raises:
        AdapterError: the adapter is faulty, or made for another base model.
        GuidanceError: its head reads a module the model does not have.
        FamilyError: a pipeline or denoiser that cannot be guided.
    """
    denoisers = find_denoisers(pipe, stock_class, adapter.config.component)
    for denoiser in denoisers.values():
        check_pipeline(stock_class, family_of(denoiser))
    _refuse_shared_layers(pipe, stock_class, denoisers, adapter)
    return load_into(denoisers, adapter, pipe=pipe)


def load_into(denoisers: Mapping[str, nn.Module], adapter: Adapter, *, pipe: Any = None) -> LoadedAdapter:
    """The same for denoisers by component, whatever runs them.

    `pipe` lets diffusers take CPU offloading off and on again around the injection. Raises as `load_adapter`.
    """
    _check(denoisers, adapter)
    loaded = LoadedAdapter(adapter, {}, {})
    try:
        for component, denoiser in denoisers.items():
            for lora, names in ((adapter.lora, loaded.loras), (adapter.old or {}, loaded.old)):
                part = component_lora(lora, component)
                if part:
                    names[component] = inject_lora(denoiser, part, component, pipe=pipe)
    except BaseException:
        unload_from(denoisers, loaded)
        raise
    for component in denoisers.keys() - loaded.loras.keys():
        warnings.warn(
            f'the adapter "{adapter.config.name}" has no LoRA for {component}: steps that run on it stay those of the '
            "base model.",
            stacklevel=4,
        )
    return loaded


def swap_adapter(pipe: Any, stock_class: type, loaded: LoadedAdapter, adapter: Adapter) -> LoadedAdapter:
    """Put an adapter's numbers in the place of a loaded one's. On an error nothing has changed.

    Nothing is injected: modules and tensors of the denoisers stay the same objects, so that compiled ones stay valid.

    Raises:
        AdapterError: as `load_adapter`, or the two differ in layers or in more than a smaller rank.
        GuidanceError: as `load_adapter`.
    """
    denoisers = find_denoisers(pipe, stock_class, adapter.config.component)
    _check(denoisers, adapter, like=loaded.adapter)
    parts = [part for part in denoisers if component_lora(adapter.lora, part)]
    if adapter.old is not None or loaded.old or parts != list(loaded.loras):
        raise AdapterError(
            f'the adapter "{adapter.config.name}" cannot take the loaded one\'s place: it has LoRAs for '
            f"{' and '.join(parts)}, the loaded one for {' and '.join(loaded.loras)}, and neither may have one for "
            "v_old",
            advice="Load it without hotswap.",
        )
    plans = [
        planned_swap(denoisers[part], name, loaded.adapter.lora, adapter.lora, part)
        for part, name in loaded.loras.items()
    ]
    swap([matrix for plan in plans for matrix in plan])
    return LoadedAdapter(adapter, loaded.loras, loaded.old)


def _check(denoisers: Mapping[str, nn.Module], adapter: Adapter, like: Adapter | None = None) -> None:
    """Raise if an adapter is faulty, or not one for these denoisers. They fit one made for the same model as `like`."""
    from ..adapter import check_base

    adapter.check(f'the adapter "{adapter.config.name}"')
    second = adapter.config.component + SECOND
    if component_lora(adapter.lora, second) and second not in denoisers:
        raise AdapterError(
            f'the adapter "{adapter.config.name}" has a LoRA for {second}, which this pipeline does not have',
            advice=f"Load the base model it was made for, {adapter.config.base_model.id}.",
        )
    for denoiser in denoisers.values():
        family_of(denoiser)  # raises for what cannot be guided
        refuse_split_weights(unwrap_compiled(denoiser))
        if like is None or _made_for(adapter) != _made_for(like):
            check_base(adapter.config, denoiser, adapter.lora)
        find_tap(denoiser, adapter)


def _refuse_shared_layers(pipe: Any, stock_class: type, denoisers: Mapping[str, nn.Module], adapter: Adapter) -> None:
    """Raise FamilyError if another part of the pipeline runs layers of a denoiser that the LoRA changes, as Z-Image's
    ControlNet does: it runs before the denoiser, once, where no pass of guidance switches the LoRA."""
    changed: dict[int, str] = {}
    for lora in (adapter.lora, adapter.old or {}):
        for component, denoiser in denoisers.items():
            for path in lora_modules(component_lora(lora, component)):
                with contextlib.suppress(AttributeError):  # an adapter for another model has its own error
                    changed[id(unwrap_compiled(denoiser).get_submodule(path))] = f"{component}.{path}"
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) and name not in denoisers:
            shared = sorted(changed[id(module)] for module in part.modules() if id(module) in changed)
            if shared:
                raise FamilyError(
                    f"{stock_class.__name__} cannot be guided with the adapter {adapter.config.name!r}: its {name} "
                    f"runs {len(shared)} of the layers that the LoRA changes, such as {shared[0]}, outside of the "
                    "denoiser, where guidance does not switch the LoRA. Use the family's plain pipeline, or an adapter "
                    "without these layers."
                )


def _made_for(adapter: Adapter) -> tuple[str, str]:
    return adapter.config.denoiser, adapter.config.base_model.fingerprint


def unload_adapter(pipe: Any, stock_class: type, loaded: LoadedAdapter) -> None:
    """Take the LoRAs out. Raises AdapterError if one is fused into the weights."""
    unload_from(find_denoisers(pipe, stock_class, loaded.adapter.config.component), loaded)


def unload_from(denoisers: Mapping[str, nn.Module], loaded: LoadedAdapter) -> None:
    """Take the LoRAs out of the denoisers, by component. Raises AdapterError if one is fused into the weights."""
    for component, name in loaded.injected():
        remove_lora(denoisers[component], name)


def find_denoisers(pipe: Any, stock_class: type, component: str) -> dict[str, nn.Module]:
    """The pipeline's denoisers by component, the first one first.

    Raises:
        FamilyError: there is none of that name.
    """
    denoisers = {name: getattr(pipe, name, None) for name in (component, component + SECOND)}
    found = {name: denoiser for name, denoiser in denoisers.items() if isinstance(denoiser, nn.Module)}
    if component not in found:
        known = ", ".join(sorted({family.component for family in FAMILIES.values()}))
        raise FamilyError(
            f"{stock_class.__name__} has no {component!r}, which the adapter is for; this version guides pipelines "
            f"whose denoiser is called {known}. Load the base model the adapter names."
        )
    return found
