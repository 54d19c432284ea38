"""Which rows of a denoiser's batch belong to which sample, held against what the pipeline's call asks for.

A batch has one row for each sample, or two where classifier-free guidance is one call. Pipelines say whether it is on,
but not all of them double the batch for it: Sana Sprint takes its scale as an input. So the number of rows decides.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..checks import is_whole, plain_number
from .family import Family
from .forward_call import Inputs
from .registry import cfg_switch

_PER_PROMPT = re.compile(r"num_\w+_per_prompt")


def batch_reader(
    family: Family, pipe: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Callable[[Inputs], bool | None]:
    """Says of a forward's inputs whether each sample has an unconditional row beside its conditional one, or None where
    the rows fit neither.

    Args:
        family: of the denoiser.
        pipe: the pipeline that is being called.
        args, kwargs: of the call.
    """
    stock_call = getattr(pipe, "_nft_stock_class", type(pipe)).__call__
    named = dict(zip(list(inspect.signature(stock_call).parameters)[1:], args, strict=False))
    asked, cfg_is_on = prompts_and_images(stock_call, {**named, **kwargs}), cfg_switch(family, pipe, args, kwargs)
    samples = None if asked is None else asked[0] * asked[1]
    says_so = hasattr(pipe, "do_classifier_free_guidance")

    def doubled(inputs: Inputs) -> bool | None:
        rows, on = family.rows(inputs), cfg_is_on(inputs)
        if samples is None:
            return on
        if rows == samples:
            return None if family.batched_cfg and says_so and on else False
        return True if on and rows == 2 * samples and family.cfg != "two_calls" else None

    return doubled


def prompts_and_images(stock_call: Callable[..., Any], call: Mapping[str, Any]) -> tuple[int, int] | None:
    """The prompts of a pipeline's call, and the pictures it draws of each. None where neither prompts nor, for a
    pipeline that takes none, pictures or classes are given.

    Args:
        stock_call: the stock pipeline's `__call__`.
        call: its arguments by name.
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(stock_call).parameters.items()}
    whole = {**defaults, **call}
    embeds = [value for name, value in whole.items() if name.startswith("prompt_embeds") and _count(value) is not None]
    others = () if "prompt" in whole else ("image_embeds", "class_labels", "image")
    given = [*embeds, whole.get("prompt"), *(whole.get(name) for name in others)]
    prompts = next((count for count in map(_count, given) if count is not None), None)
    # num_images_per_prompt, num_videos_per_prompt, num_waveforms_per_prompt
    each = next((value for name, value in whole.items() if _PER_PROMPT.fullmatch(name)), None)
    return None if prompts is None else (prompts, int(plain_number(each)) if is_whole(each) else 1)


def _count(value: Any) -> int | None:
    if isinstance(value, Tensor):
        return len(value) if value.ndim else None
    if value is None or value is inspect.Parameter.empty:
        return None
    return len(value) if isinstance(value, (list, tuple)) else 1
