"""Is everything there that contract.json names, with those parameters in that order? Standard library only."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONTRACT = Path(__file__).resolve().parents[1] / "comfyui" / "contract.json"


def contract_faults(contract: Mapping[str, Any] | None = None) -> list[str]:
    """One sentence for each name that cannot be imported, and each callable without those parameters."""
    said = json.loads(CONTRACT.read_text()) if contract is None else contract
    faults = []
    for name in said["names"]:
        if _find(name) is None:
            faults.append(f"{name} is missing")
    for name, expected in said["callables"].items():
        found = _find(name)
        if found is None:
            faults.append(f"{name} is missing")
            continue
        parameters = inspect.signature(found).parameters
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        present = [parameter for parameter in parameters if parameter in expected]
        missing = [parameter for parameter in expected if parameter not in parameters and not takes_any]
        if missing or present != [parameter for parameter in expected if parameter in parameters]:
            faults.append(f"{name} takes {list(parameters)}, expected {expected} in this order")
    return faults


def _find(name: str) -> Any:
    """The object of a dotted name, whose first parts are modules."""
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:i]))
        except ImportError:
            continue
        for part in parts[i:]:
            found = getattr(found, part, None)
        return found
    return None
