"""Tiny pipelines and calls of them as diffusers' own tests make them.

diffusers' repository has, for nearly every pipeline class, a test with `get_dummy_components` and `get_dummy_inputs`.
They are read from checkouts of it, newest first; an older one has the tests of pipelines that are deprecated by now.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import re
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffusers.pipelines import deprecated

from helpers.stand_ins import stand_ins

_CLASS = re.compile(r"^\s+pipeline_class\s*=\s*(\w+)", re.MULTILINE)
_ABSENT = ("parameterized", "requests_mock")  # for tests alone, none of which is run


class StockTests:
    """The tests in some checkouts of diffusers.

    Args:
        checkouts: folders with a folder `tests`; of two tests of one class the first checkout's counts.
    """

    def __init__(self, checkouts: Sequence[Path]) -> None:
        self._modules: dict[str, list[str]] = {}
        for absent in _ABSENT:
            sys.modules.setdefault(absent, _Decorators(absent))
        for moved in pkgutil.iter_modules(deprecated.__path__):
            if moved.ispkg:
                part = importlib.import_module(f"{deprecated.__name__}.{moved.name}")
                sys.modules.setdefault(f"diffusers.pipelines.{moved.name}", part)
        for number, checkout in enumerate(checkouts):
            package = f"tests_{number}" if number else "tests"  # by which some of them import each other
            root = types.ModuleType(package)
            root.__path__ = [str(checkout / "tests")]
            sys.modules[package] = root
            for path in sorted((checkout / "tests" / "pipelines").rglob("test_*.py")):
                inner = path.relative_to(checkout / "tests").with_suffix("")
                for name in _CLASS.findall(path.read_text(encoding="utf-8")):
                    self._modules.setdefault(_wrapped(name), []).append(".".join((package, *inner.parts)))

    def has(self, name: str) -> bool:
        """Whether there is a test of a class."""
        return name in self._modules

    def of(self, name: str) -> Iterator[Any]:
        """Instances of the test classes for a pipeline class."""
        for module in dict.fromkeys(self._modules.get(name, [])):
            with stand_ins():
                loaded = importlib.import_module(module)
            for kind in list(vars(loaded).values()):
                tested = getattr(kind, "pipeline_class", None) if hasattr(kind, "get_dummy_components") else None
                if isinstance(kind, type) and isinstance(tested, type) and _wrapped(tested.__name__) == name:
                    yield kind()


def _wrapped(name: str) -> str:
    """The pipeline class behind one that a test makes of it, such as one without a safety checker."""
    plain = name.removesuffix("Wrapper")
    return plain if plain == name or plain.endswith("Pipeline") else f"{plain}Pipeline"


def per_sample(test: Any) -> frozenset[str]:
    """The inputs that a test has one of for each sample."""
    # diffusers' own base class of its tests raises NotImplementedError where a test class does not say.
    for name in ("batch_params", "batch_input_params"):
        with contextlib.suppress(AttributeError, NotImplementedError):
            return frozenset(getattr(test, name))
    return frozenset()


class _Decorators(types.ModuleType):
    """A module whose every name is a decorator that changes nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unchanged()


class _Unchanged:
    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return lambda function: function
