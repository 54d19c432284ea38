"""Rows of a batch: taking some of a denoiser's inputs, adding copies of them, and scaling a LoRA row by row.

A row is one sample of the batch, or one of its two under classifier-free guidance. Which inputs carry rows is a fact of
the family (`Family.unbatched`, `Family.row_lists`); everything else here is bookkeeping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .families import Family
from .settings import GuidanceError

_Change = Callable[[Any], Any]


def take_rows(inputs: Mapping[str, Any], family: Family, rows: int, taken: slice) -> dict[str, Any]:
    """The inputs of a forward on some of the rows.

    Args:
        inputs: arguments of the denoiser's forward by name.
        family: says which of them carry no rows.
        rows: how many rows the inputs have.
        taken: which rows to keep.
    """
    return _changed(inputs, family, rows, lambda value: value[taken])


def add_rows(inputs: Mapping[str, Any], family: Family, rows: int, taken: slice, times: int) -> dict[str, Any]:
    """The inputs of a forward on all rows followed by `times` copies of some of them. Arguments as `take_rows`."""

    def extended(value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.cat([value, *[value[taken]] * times])
        return [*value, *list(value[taken]) * times]

    return _changed(inputs, family, rows, extended)


def _changed(inputs: Mapping[str, Any], family: Family, rows: int, change: _Change) -> dict[str, Any]:
    changed = {}
    for name, value in inputs.items():
        if name in family.unbatched:
            changed[name] = value
        elif name in family.row_lists and isinstance(value, (list, tuple)) and len(value) == rows:
            changed[name] = change(value)
        else:
            changed[name] = _change_tensors(value, rows, change)
    return changed


def _change_tensors(value: Any, rows: int, change: _Change) -> Any:
    """`change` on every Tensor with one entry a row, also inside the lists and dicts that ControlNets pass."""
    if isinstance(value, Tensor):
        return change(value) if value.ndim and value.shape[0] == rows else value
    if isinstance(value, dict):
        return {key: _change_tensors(inner, rows, change) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_change_tensors(inner, rows, change) for inner in value)
    return value


class RowScale:
    """Multiplies what a LoRA adds to its layers by one number a row, through hooks on its B matrices.

    Args:
        name: of the LoRA, for the error.
        outputs: its B modules, `LoraSwitch.outputs`.
    """

    def __init__(self, name: str, outputs: Sequence[nn.Module]) -> None:
        self._name = name
        self._scale: Tensor | None = None
        self._hooks = [module.register_forward_hook(self._multiply) for module in outputs]

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
