"""A checkpoint: all that a run needs to go on as if it had never stopped, in one file, whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import pickle
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from nft_pipeline.files.atomic import atomic_write_bytes
from nft_pipeline.files.versions import VERSION_KEY, Format, VersionError

from ..settings.stored import that_matter, with_defaults

# A new setting needs nothing here (training/settings/stored.py). Anything else needs a migration of the whole state.
FORMAT = Format(version=1, migrations={})


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, or cannot be written."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, text, and dicts and lists of them) to `path`, in the place of the one before.

    Raises:
        CheckpointError: the disk is full or cannot be written; the checkpoint before is still there, untouched.
    """
    buffer = io.BytesIO()
    torch.save({VERSION_KEY: FORMAT.version, **state}, buffer)
    try:
        atomic_write_bytes(path, buffer.getvalue())
    except OSError as error:
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        kept = "the one before is untouched" if path.is_file() else "there is none before it"
        raise CheckpointError(
            f"{path} of {buffer.tell() / 1e6:.1f} MB could not be written: {what}; {kept}. Free some space"
        ) from error


def rotate(path: Path, step: int, keep: int) -> None:
    """Keep the checkpoint in `path` under its step's name too, the last `keep` of these; 1 keeps none but `path`.

    checkpoint.pt is always the newest; to go back, put checkpoint-000400.pt in its place. Where the disk takes no
    second name for a file, none is kept.
    """
    if keep == 1:
        return
    with suppress(OSError):
        name = path.with_name(f"{path.stem}-{step:06d}{path.suffix}")
        name.unlink(missing_ok=True)
        os.link(path, name)  # the next checkpoint is a new file under the old name, so this one stays as it is
        named = re.compile(rf"{re.escape(path.stem)}-(\d{{6,}}){re.escape(path.suffix)}")
        steps = {int(match[1]): entry for entry in path.parent.iterdir() if (match := named.fullmatch(entry.name))}
        known = sorted(number for number in steps if number <= step)
        for number in steps.keys() - set(known[-keep:]):  # also later ones, if the run went back to an earlier step
            steps[number].unlink()


def load_checkpoint(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The state in `path`, or None if there is no checkpoint.

    Settings that the file lacks count as their defaults: its version did not have them yet.

    Raises:
        CheckpointError: the file is damaged, of a newer version, or belongs to a run with other settings (which ones is
            said). Settings in `TrainConfig.may_change` may differ.
    """
    if not path.is_file():
        return None
    try:
        loaded = torch.load(path, weights_only=True, map_location="cpu")
        state = FORMAT.migrated({VERSION_KEY: 1, **loaded})  # the first files did not say it
        saved = that_matter(state["settings"])
    except VersionError as error:
        raise CheckpointError(f"{path} cannot go on here: {error}. To start again, write to another folder") from error
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}. Delete it to start again") from error
    today, complete = that_matter(settings), with_defaults(saved)
    gone = sorted(saved.keys() - today.keys())
    if gone:
        named = ", ".join(f"{name} = {saved[name]!r}" for name in gone)
        raise CheckpointError(
            f"{path} was made by a version of diffusion-nft with settings that this one does not have ({named}). "
            "Finish the run with the version that began it, or start again in another folder"
        )
    differing = sorted(name for name in today if today[name] != complete.get(name))
    if differing:
        changes = ", ".join(f"{name} {complete.get(name)!r} -> {today[name]!r}" for name in differing)
        raise CheckpointError(
            f"{path} belongs to a run with other settings ({changes}). Write to another folder, or delete it"
        )
    return state
