"""A checkpoint: all that a run needs to go on as if it had never stopped, in one file, whole or not at all."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from nft_pipeline.atomic import atomic_write_bytes


class CheckpointError(ValueError):
    """A checkpoint that cannot be used."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, text, and dicts and lists of them) to `path`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    atomic_write_bytes(path, buffer.getvalue())


def load_checkpoint(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The state in `path`, or None if there is no checkpoint.

    Raises:
        CheckpointError: the file is damaged, or belongs to a run with other settings (which ones is said).
    """
    if not path.is_file():
        return None
    try:
        state = torch.load(path, weights_only=True)
        saved = state["settings"]
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}. Delete it to start again") from error
    differing = sorted(key for key in settings.keys() | saved.keys() if settings.get(key) != saved.get(key))
    if differing:
        changes = ", ".join(f"{key} {saved.get(key)!r} -> {settings.get(key)!r}" for key in differing)
        raise CheckpointError(
            f"{path} belongs to a run with other settings ({changes}). Write to another folder, or delete it"
        )
    return state
