"""Rooms whose files are found by standing there: a new one is added by adding a file, and no list has to be edited."""

from __future__ import annotations

import importlib
import pkgutil
from types import GenericAlias, ModuleType
from typing import Any


def modules_of(room: ModuleType) -> list[ModuleType]:
    """The modules of a package, imported, sorted by name; those of packages inside it are left out."""
    names = sorted(module.name for module in pkgutil.iter_modules(room.__path__) if not module.ispkg)
    return [importlib.import_module(f"{room.__name__}.{name}") for name in names]


def classes_in(module: ModuleType, base: type[Any]) -> list[type[Any]]:
    """The classes of this base among what a module has, in its order; on Python 3.10 `list[int]` calls itself one."""
    values = [value for value in vars(module).values() if isinstance(value, type)]
    return [value for value in values if not isinstance(value, GenericAlias) and issubclass(value, base)]
