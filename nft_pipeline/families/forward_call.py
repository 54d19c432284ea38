"""One forward call of a denoiser, read and written in one form: Tensors whose first dimension is the batch.

    inputs = bind_inputs(denoiser, args, kwargs)      # the call's arguments by name
    predictions = output_tensors(output)              # each (rows, ...); most denoisers have one
    replace_output(output, *predictions)              # the same output with other predictions

Most denoisers take and return such Tensors; Z-Image takes and returns lists with one Tensor per row. Denoisers that
draw sound beside the picture (LTX-2) return a prediction for each.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FamilyError

Inputs = Mapping[str, Any]


def bind_inputs(denoiser: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A forward call's arguments by name, however they were passed; those of a **kwargs parameter are among them, and
    `self` is the denoiser.

    Lists and dicts are copies: UNets pop from the very lists that they are given, and a further forward needs all of
    them.

    Raises:
        FamilyError: the arguments do not fit the denoiser's forward.
    """
    signature = inspect.signature(type(denoiser).forward)
    try:
        inputs = dict(signature.bind(denoiser, *args, **kwargs).arguments)
    except TypeError as error:
        raise FamilyError(f"{type(denoiser).__name__} was called with arguments it does not take: {error}") from error
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            inputs.update(inputs.pop(name, {}))
    return {name: copied(value) for name, value in inputs.items()}


def copied(value: Any) -> Any:
    """The same with lists, tuples and dicts of its own, whose other contents are shared."""
    if type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    return {key: copied(item) for key, item in value.items()} if type(value) is dict else value


def call_arguments(inputs: Inputs) -> dict[str, Any]:
    """What to call the denoiser's forward with, as keywords, from bound inputs, which the forward cannot change."""
    return {name: copied(value) for name, value in inputs.items() if name != "self"}


def first_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The first argument of a module's call, however it was passed: what an alpha head reads at its tap."""
    return args[0] if args else next(iter(kwargs.values()))


def as_tokens(features: Tensor) -> Tensor:
    """What an alpha head reads, as tokens (B, N, C): feature maps (B, C, H, W) or (B, T, H, W, C) become one token per
    place."""
    if features.ndim == 5:
        return features.flatten(1, 3)
    return features.flatten(2).transpose(1, 2) if features.ndim == 4 else features


def as_rows(value: Tensor | list[Tensor]) -> Tensor:
    """A batch as one Tensor (rows, ...); a list with one Tensor per row is stacked.

    Raises:
        FamilyError: the rows are not Tensors of one shape (Z-Image's omni mode, pictures of several sizes at once).
    """
    if isinstance(value, Tensor):
        return value
    shapes = {tuple(row.shape) if isinstance(row, Tensor) else type(row).__name__ for row in value}
    if len(shapes) != 1 or not isinstance(value[0], Tensor):
        raise FamilyError(
            f"a batch of {len(value)} rows is {sorted(map(str, shapes))}, expected Tensors of one shape. Sample "
            "pictures of different sizes in calls of their own."
        )
    return torch.stack(list(value))


def as_text(value: Tensor | list[Tensor]) -> Tensor:
    """Text tokens as (rows, L, D); lists with one (l, D) per row are padded with zeros, which an alpha head ignores.

    Where a token has vectors of several layers, (rows, L, layers, d), D is all of them side by side.

    Raises:
        FamilyError: the list does not hold one (l, D) per row, such as one of texts beside pictures.
    """
    if isinstance(value, Tensor):
        return value.flatten(2) if value.ndim > 3 else value
    if any(not isinstance(row, Tensor) or row.ndim != 2 for row in value):
        shapes = [tuple(row.shape) if isinstance(row, Tensor) else type(row).__name__ for row in value]
        raise FamilyError(
            f"the pipeline gives the denoiser its text as {len(value)} parts, {', '.join(map(str, shapes))}, expected "
            "one Tensor (tokens, channels) for each row. An alpha head cannot read that; a policy adapter has "
            "none and can be used."
        )
    longest = max(row.shape[0] for row in value)
    return torch.stack([F.pad(row, (0, 0, 0, longest - row.shape[0])) for row in value])


def same_state(x: Any, y: Any) -> bool:
    """Whether two forwards were given the same x_t: one object, or, where a pipeline casts it each time, equal ones."""
    if isinstance(x, list) and isinstance(y, list):
        return len(x) == len(y) and all(map(same_state, x, y))
    return x is y or (isinstance(x, Tensor) and isinstance(y, Tensor) and torch.equal(x, y))


def output_tensor(output: Any) -> Tensor:
    """The prediction in what a denoiser returned: the first element of a tuple, or the model output's `sample`."""
    return as_rows(output[0] if isinstance(output, tuple) else output.sample)


def output_tensors(output: Any) -> list[Tensor]:
    """All predictions in what a denoiser returned: that of `output_tensor`, and every further Tensor beside it.

    Raises:
        FamilyError: a further Tensor does not have the batch's rows, so that nobody knows what it is.
    """
    first = output_tensor(output)
    others = [value for value in _others(output).values() if isinstance(value, Tensor)]
    for other in others:
        if other.ndim == 0 or len(other) != len(first):
            raise FamilyError(
                f"the denoiser returns a Tensor of shape {tuple(other.shape)} beside its prediction of shape "
                f"{tuple(first.shape)}, expected one with as many rows, which could be guided alike. This version "
                "cannot guide it; set nft_strength=0."
            )
    return [first, *others]


def replace_output(output: Any, *predictions: Tensor) -> Any:
    """The same output with other predictions, in the order of `output_tensors`. Whatever is no Tensor stays the base
    pass's."""
    others = _others(output)
    further = [key for key, value in others.items() if isinstance(value, Tensor)]
    others |= dict(zip(further, predictions[1:], strict=True))
    if isinstance(output, tuple):
        return (_like(output[0], predictions[0]), *others.values())
    return type(output)(**others, sample=_like(output.sample, predictions[0]))


def _others(output: Any) -> dict[Any, Any]:
    """What a denoiser returned beside its first prediction, by place or name."""
    if isinstance(output, tuple):
        return dict(enumerate(output[1:], 1))
    return {name: value for name, value in output.items() if name != "sample"}


def _like(first: Any, prediction: Tensor) -> Any:
    return prediction if isinstance(first, Tensor) else list(prediction.unbind(0))
