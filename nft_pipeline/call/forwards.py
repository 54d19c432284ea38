"""Being called before each forward of a pipeline's guided denoisers: to look at the call so far, or to stop it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..engine.loading import find_denoisers
from ..families.registry import unwrap_compiled


@contextlib.contextmanager
def before_each_forward(pipe: Any, look: Callable[[], None]) -> Iterator[None]:
    """Within this context `look()` is called before every forward of the denoisers that the adapter guides.

    What it raises ends the pipeline's call, after which the pipeline is as it was. `pipe.nft_stats` is there the record
    of the call so far.

    Args:
        pipe: a guided pipeline with an adapter.
        look: takes nothing and returns nothing.
    """

    @torch.compiler.disable
    def hook(module: torch.nn.Module, args: Any) -> None:
        look()

    component = next(iter(pipe.nft_adapters.values())).config.component
    denoisers = find_denoisers(pipe, pipe._nft_stock_class, component).values()
    hooks = [unwrap_compiled(denoiser).register_forward_pre_hook(hook) for denoiser in denoisers]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()
