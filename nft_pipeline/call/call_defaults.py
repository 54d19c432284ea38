"""call_defaults.json: the stock call's arguments that a model was made for. It is beside the model's model_index.json.

diffusers has no place for such arguments, and a small or distilled model draws nothing with its pipeline's defaults. A
pipeline that has them says so: they are its attribute `call_defaults`, guided or not, so that equal calls of a guided
pipeline at strength 0 and of the stock one under it draw the same.
"""

from __future__ import annotations

import functools
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
        folder: the pipeline's `name_or_path`, which may also be a Hub id or None.

    Raises:
        GuidanceError: the file is not a JSON object of arguments of the pipeline's call.
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


class HasCallDefaults:
    """In front of a stock pipeline class: its call takes from `call_defaults` what it is not given."""

    call_defaults: dict[str, Any]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _made_anew, (plain_class(type(self)),), self.__dict__


def set_call_defaults(pipe: Any, defaults: dict[str, Any]) -> None:
    """Give a stock pipeline object defaults for its calls; none make it one of its plain class again."""
    stock = plain_class(type(pipe))
    pipe.__class__ = _class_with_defaults(stock) if defaults else stock
    pipe.__dict__.pop("call_defaults", None)
    if defaults:
        pipe.call_defaults = defaults


def filled(stock_class: Any, defaults: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The keyword arguments of a stock call, with the defaults that neither `args` nor `kwargs` give."""
    positional = list(inspect.signature(stock_class.__call__).parameters)[1 : 1 + len(args)]
    return {**{name: value for name, value in defaults.items() if name not in positional}, **kwargs}


def plain_class(pipeline_class: type) -> Any:
    """diffusers' own class of a pipeline that may have defaults."""
    return next(kind for kind in pipeline_class.__mro__ if not issubclass(kind, HasCallDefaults))


@functools.cache
def _class_with_defaults(stock: Any) -> type:
    @functools.wraps(stock.__call__)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return stock.__call__(self, *args, **filled(stock, self.call_defaults, args, kwargs))

    names = {"__call__": __call__, "__module__": stock.__module__, "__doc__": stock.__doc__}
    return type(stock.__name__, (HasCallDefaults, stock), names)


def _made_anew(stock: Any) -> Any:
    pipe = stock.__new__(stock)
    pipe.__class__ = _class_with_defaults(stock)
    return pipe


def write_call_defaults(folder: Path, defaults: Mapping[str, Any]) -> None:
    """Write the arguments into a model's folder; without arguments nothing is written."""
    if defaults:
        atomic_write_bytes(folder / CALL_DEFAULTS, (json.dumps(defaults, indent=2) + "\n").encode())
