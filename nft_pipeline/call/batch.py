"""How many pictures a stock call draws, as far as its arguments say."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..checks import is_whole

_PROMPTS = ("prompt", "prompt_embeds", "class_labels")  # the first that is given counts


def prompts_and_images(stock_call: Callable[..., Any], call: Mapping[str, Any]) -> tuple[int, int] | None:
    """The prompts of a call, and the pictures it draws of each; None where its arguments do not say.

    Args:
        stock_call: the stock pipeline's `__call__`.
        call: its arguments by name.
    """
    given = next((call[name] for name in _PROMPTS if call.get(name) is not None), None)
    if given is None:
        return None
    prompts = 1 if isinstance(given, str) or is_whole(given) else len(given)
    # num_images_per_prompt, num_videos_per_prompt, num_waveforms_per_prompt
    counts = [name for name in inspect.signature(stock_call).parameters if re.fullmatch("num_[a-z]+_per_prompt", name)]
    times = next((call[name] for name in counts if call.get(name) is not None), 1)
    return prompts, int(times)
