"""The random numbers of a step's passes: the same in each, where another guider drops activations at random."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..engine.caching import hooks_of
from ..errors import GuidanceError

_ONE_STATE = ("cpu", "mps")  # kinds of device with one random state, whatever the number of devices


class SameRandomness:
    """Both passes of a step drop the same activations, where the other guider drops them at random (AutoGuidance).

    Each pass would draw a mask of its own, and v_lora - v_old would be the masks' difference too. So a module that
    drops at random begins each pass after a step's first with the random state that it began the first with.

    Args:
        denoiser: with the other guider's hooks on it.
        one_batch: whether both passes are rows of one batch.

    Raises:
        GuidanceError: they are, so that their masks differ.
    """

    def __init__(self, denoiser: nn.Module, *, one_batch: bool) -> None:
        self._states: dict[nn.Module, Any] = {}
        random = [module for module in denoiser.modules() if any(map(_drops_at_random, hooks_of(module)))]
        if random and one_batch:
            raise GuidanceError(
                'nft_mode="batched" runs both passes as rows of one batch, and the guider inside drops activations at '
                'random, differently in each row. Use nft_mode="two_pass", or dropout=1.0.'
            )
        self._handles = [module.register_forward_pre_hook(self._same) for module in random]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _same(self, module: nn.Module, args: Any) -> None:
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        of_kind = torch if device.type == "cpu" else torch.get_device_module(device)
        which = () if device.type in _ONE_STATE else (device,)
        if module in self._states:
            of_kind.set_rng_state(self._states[module], *which)
        else:
            self._states[module] = of_kind.get_rng_state(*which)


def _drops_at_random(hook: Any) -> bool:
    dropout = getattr(hook, "dropout", 1.0)
    return not math.isclose(dropout, 1.0) and dropout > 0
