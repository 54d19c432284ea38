"""The library's errors in the words of the nodes, which have a law and a mode "fast" where Python has arguments.

    nft_law="odds" needs a positive adapter ...     ->  law "odds" needs a positive adapter ...
    Use nft_mode="two_pass", or leave nft_cap out.  ->  Use mode "exact", or leave cap out.

Both places where an error leaves this room for ComfyUI do so: a node's `execute`, and what wraps a run of a sampler.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from nft_pipeline.errors import AdapterError, GuidanceError
from nft_pipeline.modes import MODES

Function = TypeVar("Function", bound=Callable[..., Any])

_WIDGETS = {"interval": "start_percent and end_percent"}  # of arguments that are called otherwise
_CONFIG = re.compile(r"nft_config\.json")
_SETTING = re.compile(r'\bnft_(\w+)="(\w+)"')
_ARGUMENT = re.compile(r"\bnft_(?!pipeline\b)(\w+)")


def in_node_words(text: str) -> str:
    """A text of the library as a node says it."""

    def setting(match: re.Match[str]) -> str:
        name, value = match.groups()
        if name == "mode" and value in MODES:
            value = MODES[value].node or "exact"
        return f'{_WIDGETS.get(name, name)} "{value}"'

    text = _SETTING.sub(setting, _CONFIG.sub("the adapter's config", text))
    return _ARGUMENT.sub(lambda match: _WIDGETS.get(match[1], match[1]), text)


def speaking_as_a_node(function: Function) -> Function:
    """The function, with the library's errors in the words of the nodes."""

    @wraps(function)
    def speaking(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except AdapterError as error:
            faults = [in_node_words(fault) for fault in error.faults]
            raise AdapterError(in_node_words(error.what), faults, in_node_words(error.advice)) from error
        except GuidanceError as error:
            raise GuidanceError(in_node_words(str(error))) from error

    return speaking  # type: ignore[return-value]
