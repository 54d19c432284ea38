"""An engine on a denoiser for one forward of a modular pipeline, and off again when the forward ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ..engine.engine import NFTEngine
from .same_randomness import SameRandomness


class OneForward:
    """Hooks that guide the next forward of a denoiser and then take themselves off.

    A guider hears of a forward's end from the pipeline alone, which may skip that after an error. So hooks around the
    engine's end the guidance with the forward, whether it returned or raised.

    Args:
        engine: guides the denoiser.
        ended: called once, when the forward is over.

    Raises:
        GuidanceError: the passes cannot be told apart from what the other guider does at random, or another engine is
            on the denoiser.
        AdapterError: the adapter's LoRA was unloaded or fused by someone else.
    """

    def __init__(self, engine: NFTEngine, ended: Callable[[], None]) -> None:
        self._engine, self._ended, self._running = engine, ended, False
        module = engine.denoiser
        self._hooks: list[Any] = []
        self._randomness = SameRandomness(module, one_batch=engine.settings.mode == "batched")
        try:
            self._hooks = [module.register_forward_pre_hook(self._enter)]
            engine.install()
            self._hooks.append(module.register_forward_hook(self._leave, always_call=True))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """The denoiser as it was before."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._randomness.remove()
        self._engine.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._running:  # an interrupt left the hooks on; this forward is somebody else's
            self._ended()
        self._running = True

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._ended()
