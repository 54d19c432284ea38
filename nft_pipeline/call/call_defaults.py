"""call_defaults.json: stock call arguments a model was made for, beside its model_index.json.

diffusers has no place for them, and a small or distilled model sampled with its pipeline's own defaults draws nothing.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import GuidanceError
from ..files.atomic import atomic_write_bytes

CALL_DEFAULTS = "call_defaults.json"


def read_call_defaults(stock_class: Any, folder: str | PathLike[str] | None) -> dict[str, Any]:
    """The arguments in the folder a pipeline was loaded from, {} where there are none.

    Args:
        stock_class: diffusers' class of the pipeline.
        folder: as the pipeline's `name_or_path` says, which may be a Hub id or None.

    Raises:
        GuidanceError: the file is no JSON object of arguments of the pipeline's call.
    """
    path = Path(folder or "") / CALL_DEFAULTS
    if not folder or not path.is_file():
        return {}
    try:
        defaults = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise GuidanceError(f"{path} is no JSON: {error}. Mend it or delete it.") from error
    known = list(inspect.signature(stock_class.__call__).parameters)[1:]
    unknown = sorted(set(defaults) - set(known)) if isinstance(defaults, dict) else [type(defaults).__name__]
    if unknown:
        raise GuidanceError(
            f"{path} has {unknown}, expected an object with arguments of {stock_class.__name__}'s call: {known}. Mend "
            "it or delete it."
        )
    return defaults


def write_call_defaults(folder: Path, defaults: Mapping[str, Any]) -> None:
    """Write them into a model's folder; nothing where there are none."""
    if defaults:
        atomic_write_bytes(folder / CALL_DEFAULTS, (json.dumps(defaults, indent=2) + "\n").encode())
