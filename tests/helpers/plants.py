"""Faults planted in a copy of a sound adapter folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import safe_open

Plant = Callable[[Path], Any]


def in_json(name: str, /, **changed: Any) -> Plant:
    """Change fields of a JSON file; None as a value is kept, ... removes the key."""

    def plant(folder: Path) -> None:
        values = json.loads((folder / name).read_text()) | changed
        (folder / name).write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))

    return plant


def in_tensors(name: str, change: Callable[[dict[str, Any]], Any], **header: str) -> Plant:
    """Change the tensors or header texts of a safetensors file."""

    def plant(folder: Path) -> None:
        with safe_open(folder / name, "pt") as file:
            texts = {**file.metadata(), **header}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        change(tensors)
        texts = {key: value for key, value in texts.items() if value}
        (folder / name).write_bytes(safetensors.torch.save(tensors, metadata=texts))

    return plant
