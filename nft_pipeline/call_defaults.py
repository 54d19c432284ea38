"""call_defaults.json: stock call arguments a model was made for, beside its model_index.json.

diffusers has no place for them, and a small or distilled model sampled with its pipeline's own defaults draws nothing.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .settings import GuidanceError

CALL_DEFAULTS = "call_defaults.json"


def read_call_defaults(pipe: Any) -> dict[str, Any]:
    """The arguments in the folder the pipeline was loaded from, {} where there are none.

    Raises:
        GuidanceError: the file is no JSON object of arguments of the pipeline's call.
    """
    name_or_path = getattr(pipe, "name_or_path", None)
    path = Path(name_or_path or "") / CALL_DEFAULTS
    if not name_or_path or not path.is_file():
        return {}
    try:
        defaults = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise GuidanceError(f"{path} is no JSON: {error}. Mend it or delete it.") from error
    known = list(inspect.signature(type(pipe).__call__).parameters)[1:]
    unknown = sorted(set(defaults) - set(known)) if isinstance(defaults, dict) else [type(defaults).__name__]
    if unknown:
        raise GuidanceError(
            f"{path} has {unknown}, expected an object with arguments of {type(pipe).__name__}'s call: {known}. Mend "
            "it or delete it."
        )
    return defaults


def write_call_defaults(folder: Path, defaults: Mapping[str, Any]) -> None:
    """Write them into a model's folder; nothing where there are none."""
    if defaults:
        (folder / CALL_DEFAULTS).write_text(json.dumps(defaults, indent=2) + "\n", encoding="utf-8")
