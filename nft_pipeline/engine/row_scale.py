"""Scaling a LoRA row by row of a batch, which is what batched and single mode are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import GuidanceError


class RowScale:
    """Multiplies what a LoRA adds to its layers by one number a row: B (s A x), through hooks on its A matrices.

    A's output is as wide as the rank, B's as wide as the layer, and often a hundred times as much to multiply.

    Args:
        name: of the LoRA, for the error.
        inner: its A modules, `LoraSwitch.inner`.
    """

    def __init__(self, name: str, inner: Sequence[nn.Module]) -> None:
        self._name = name
        self._scale: Tensor | None = None
        self._hooks = [module.register_forward_hook(self._multiply) for module in inner]

    def set(self, scale: Tensor | None) -> None:
        """From now on this scale, shape (rows,); None is 1 for all."""
        self._scale = scale

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def _multiply(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if self._scale is None:
            return None
        if output.shape[0] != len(self._scale):
            if bool((self._scale == self._scale[0]).all()):
                return output * self._scale[0].to(output.dtype)
            raise GuidanceError(
                f"a layer that carries the LoRA {self._name} sees {output.shape[0]} rows where the batch has "
                f"{len(self._scale)}: this model folds the batch into another dimension, so no row can have a scale of "
                'its own. Use nft_mode="two_pass".'
            )
        return output * self._scale.to(output.dtype).reshape(-1, *[1] * (output.ndim - 1))
