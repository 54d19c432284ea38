"""Gives each pass of guidance its own memory in diffusers' step caches (first-block cache and its kin).

A cache keeps the output of a block in the step before, in a memory that is named after the context that the pipeline
sets ("cond", "uncond"). A pass with a LoRA on needs a memory of its own: mixing the residuals of both branches is wrong
without any warning (measured on a tiny FLUX.1: an error of 5 to 50 % of what the LoRA does, by cache). So such a pass
runs in a context named after its branch, "cond/nft", and the base pass in the pipeline's own, as if there were no
guidance.

Some pipelines have a cache of keys and values of their own, which they hand to the denoiser; `own_kv_cache` finds it.

Caches also assume that each forward is the step right after the last one. A branch may be left out of a step, because
nothing is guided there or because one forward serves both branches. It would go on from a memory that is too old, so it
begins anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..errors import GuidanceError

# diffusers' hooks whose whole memory is named after the context. TextKVCacheTransformerHook does nothing by itself:
# it is meant for the blocks of a model that no family here has.
KEYED = {
    "FBCHeadBlockHook": "FirstBlockCache",
    "MagCacheHeadHook": "MagCache",
    "SeaCacheRootHook": "SeaCache",
    "TaylorSeerCacheHook": "TaylorSeerCache",
    "TextKVCacheTransformerHook": "TextKVCache",
}


def own_kv_cache(inputs: Mapping[str, Any]) -> str | None:
    """The argument by which a pipeline hands a denoiser a cache of keys and values; None if there is none in use.

    It is in use if it holds a Tensor, or says in a word whether it is to be written or read.

    Args:
        inputs: a forward's arguments by name.
    """
    inner = {key: item for value in inputs.values() if isinstance(value, dict) for key, item in value.items()}
    caches = {name: value for name, value in {**inner, **inputs}.items() if "kv_cache" in str(name)}
    return next((name for name, value in caches.items() if _in_use(value)), None)


def _in_use(cache: Any) -> bool:
    if isinstance(cache, (Tensor, str)):
        return True
    parts = cache.values() if isinstance(cache, dict) else getattr(cache, "__dict__", {}).values()
    return any(map(_in_use, cache if isinstance(cache, (list, tuple)) else parts))


class CacheBranches:
    """The contexts that the passes of one denoiser run in. Does nothing for a denoiser without a cache.

    Args:
        denoiser: the denoiser, with any hooks of diffusers on it, however they were added.

    Raises:
        GuidanceError: one of the hooks keeps a memory that is not named after the context, so that passes would mix.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        hooks = [hook for module in denoiser.modules() for hook in hooks_of(module)]
        for hook in hooks:
            name = type(hook).__name__
            if hook._is_stateful and name not in KEYED:
                raise GuidanceError(
                    f"the denoiser caches by {name.removesuffix('Hook')}, whose memory guidance's passes would mix up. "
                    f"Switch it off (disable_cache()), or use one of {', '.join(KEYED.values())}."
                )
        managers = {id(manager): manager for hook in hooks for manager in _state_managers(hook)}
        self._managers = list(managers.values())
        self._outer: list[Any] | None = None
        self._used: set[str] = set()  # names of branches, of the whole call of the pipeline
        self._visited: set[str] = set()  # names of contexts, of this call of the denoiser

    def enter(self, branch: str) -> None:
        """From now on the context is "<the pipeline's>/<branch>"."""
        from diffusers.hooks.hooks import CacheContext

        self._outer = [manager._context for manager in self._managers]
        for manager, context in zip(self._managers, self._outer, strict=True):
            inner = CacheContext(branch) if context is None else replace(context, name=f"{context.name}/{branch}")
            self._used.add(inner.name)
            self._visited.add(inner.name)
            manager.set_context(inner)

    def leave(self) -> None:
        """Back to the pipeline's own context; does nothing if it is that already."""
        if self._outer is not None:
            for manager, context in zip(self._managers, self._outer, strict=True):
                manager.set_context(context)
        self._outer = None

    def end_step(self, *, base_ran: bool) -> None:
        """A call of the denoiser has ended: drop the memory of branches it has left out.

        Args:
            base_ran: whether the base pass ran, in the pipeline's own context.
        """
        self.leave()
        for manager in self._managers:
            if manager._context is None:
                continue
            outer = manager._context.name
            for name in list(manager._state_cache):
                missed = not base_ran if name == outer else name.startswith(f"{outer}/") and name not in self._visited
                if missed:
                    del manager._state_cache[name]
        self._visited = set()

    def forget(self) -> None:
        """Drop what the branches keep in memory, because the call it belongs to is over."""
        for manager in self._managers:
            for name in self._used:
                manager._state_cache.pop(name, None)
        self._used = set()


def hooks_of(module: nn.Module) -> list[Any]:
    """diffusers' own hooks on a module."""
    registry = getattr(module, "_diffusers_hook", None)
    return [] if registry is None else list(registry.hooks.values())


def _state_managers(hook: Any) -> Iterator[Any]:
    from diffusers.hooks.hooks import StateManager

    return (value for value in vars(hook).values() if isinstance(value, StateManager))
