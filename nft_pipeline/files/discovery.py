"""Rooms whose files are found by standing there: a new one is added by adding a file, and no list has to be edited."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def modules_of(room: ModuleType) -> list[ModuleType]:
    """The modules of a package, imported, sorted by name; those of packages inside it are left out."""
    names = sorted(module.name for module in pkgutil.iter_modules(room.__path__) if not module.ispkg)
    return [importlib.import_module(f"{room.__name__}.{name}") for name in names]
