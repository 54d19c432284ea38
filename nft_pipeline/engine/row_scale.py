"""Scaling what a LoRA adds row by row of a batch, for modes that give each row a LoRA scale of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..errors import GuidanceError


def scale_rows(inner: Tensor, scale: Tensor) -> Tensor | None:
    """`inner` times one number per row of the batch; None if the numbers differ and its rows are not the batch's.

    Some models fold the batch into another dimension (frames of a video, windows of a picture). Then a row of `inner`
    cannot be told from those of other samples, and only one number for all is possible.

    Args:
        inner: what a LoRA's A gave, (rows, ...).
        scale: (rows of the batch,).
    """
    if inner.shape[0] == len(scale):
        return inner * scale.to(inner).reshape(-1, *[1] * (inner.ndim - 1))
    return inner * scale[0].to(inner) if bool((scale == scale[0]).all()) else None


class RowScale:
    """Multiplies what a LoRA adds to its layers by one number per row: B (s A x), through hooks on its A matrices.

    The output of A is as wide as the rank. That of B is as wide as the layer, often a hundred times as many numbers.

    Args:
        name: the LoRA's name, for the error.
        inner: the LoRA's A modules, see `LoraSwitch.inner`.
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
        scaled = scale_rows(output, self._scale)
        if scaled is None:
            raise GuidanceError(
                f"a layer that carries the LoRA {self._name} sees {output.shape[0]} rows where the batch has "
                f"{len(self._scale)}: this model folds the batch into another dimension, so no row can have a scale of "
                'its own. Use nft_mode="two_pass".'
            )
        return scaled
