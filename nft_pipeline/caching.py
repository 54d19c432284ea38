"""diffusers' caches (first-block cache and its kin) and the passes of guidance.

A cache keeps what a block gave in the step before, under the name of the context the pipeline sets ("cond", "uncond").
The pass with a LoRA on needs a memory of its own: mixing the residuals of both branches is wrong without any warning
(measured on a tiny FLUX.1: a third of the guidance's own size). So a pass runs in a context named after its branch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from .settings import GuidanceError

# Those whose whole memory is keyed by context. The others count calls or compare halves of a batch.
KEYED = ("FirstBlockCacheConfig", "MagCacheConfig", "TaylorSeerCacheConfig")


def check_cache(denoiser: nn.Module) -> None:
    """Raise GuidanceError if a cache is on that cannot keep two passes apart."""
    config = getattr(denoiser, "_cache_config", None)
    name = type(config).__name__
    if config is not None and name not in KEYED:
        raise GuidanceError(
            f"the denoiser caches by {name}, whose memory guidance's passes would mix up. Call disable_cache() on it, "
            f"or use one of {', '.join(known.removesuffix('Config') for known in KEYED)}."
        )


@contextmanager
def branch_context(denoiser: nn.Module, branch: str) -> Iterator[None]:
    """The cache context "<present one>/<branch>" for a forward; does nothing without a cache."""
    managers = list(_state_managers(denoiser)) if getattr(denoiser, "_cache_config", None) is not None else []
    contexts = [manager._context for manager in managers]
    for manager, context in zip(managers, contexts, strict=True):
        if context is not None:
            manager.set_context(replace(context, name=f"{context.name}/{branch}"))
    try:
        yield
    finally:
        for manager, context in zip(managers, contexts, strict=True):
            manager.set_context(context)


def _state_managers(denoiser: nn.Module) -> Iterator[Any]:
    from diffusers.hooks.hooks import StateManager

    for module in denoiser.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for hook in registry.hooks.values() if registry is not None else ():
            yield from (value for value in vars(hook).values() if isinstance(value, StateManager))
