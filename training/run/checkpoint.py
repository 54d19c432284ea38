"""A checkpoint: all that a run needs to go on as if it had never stopped, in one file, whole or not at all.

The file is what `torch.save` writes, a zip file, with the SHA-256 of everything before it as the zip file's comment.
torch itself reads a file in which a bit has changed without a word.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from nft_pipeline.files.atomic import atomic_write_bytes
from nft_pipeline.files.versions import VERSION_KEY, Format, VersionError

from ..settings.public import public_settings
from ..settings.stored import that_matter, with_defaults

# A new setting needs nothing here (training/settings/stored.py). Anything else needs a migration of the whole state.
FORMAT = Format(version=1, migrations={})
_MARK = b"sha256:"
_COMMENT_BYTES = len(_MARK) + 64


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
        atomic_write_bytes(path, _with_hash(buffer.getvalue()))
    except OSError as error:
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        kept = "the one before is untouched" if path.is_file() else "there is none before it"
        raise CheckpointError(
            f"{path} of {buffer.tell() / 1e6:.1f} MB could not be written: {what}; {kept}. Free some space"
        ) from error


def relabel(path: Path, to: Path, settings: dict[str, Any]) -> None:
    """Write the checkpoint in `path` to `to`, as one of a run with these settings.

    Raises:
        CheckpointError: it is damaged or of a newer version, or `to` cannot be written.
    """
    try:
        state = _state(path)
    except _Damaged as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    save_checkpoint(to, {**state, "settings": settings})


def rotate(path: Path, step: int, keep: int) -> None:
    """Keep the checkpoint in `path` under its step's name too, the last `keep` of these and never fewer than two.

    checkpoint.pt is always the newest; to go back, put checkpoint-000400.pt in its place. Where the disk takes no
    second name for a file, none is kept.
    """
    keep = max(2, keep)
    with suppress(OSError):
        name = path.with_name(f"{path.stem}-{step:06d}{path.suffix}")
        name.unlink(missing_ok=True)
        os.link(path, name)  # the next checkpoint is a new file under the old name, so this one stays as it is
        steps = by_step(path)
        known = sorted(number for number in steps if number <= step)
        for number in steps.keys() - set(known[-keep:]):  # also later ones, if the run went back to an earlier step
            steps[number].unlink()


def by_step(path: Path) -> dict[int, Path]:
    """The checkpoints that `rotate` kept beside `path`, by their step."""
    named = re.compile(rf"{re.escape(path.stem)}-(\d{{6,}}){re.escape(path.suffix)}")
    return {int(match[1]): entry for entry in path.parent.iterdir() if (match := named.fullmatch(entry.name))}


def load_checkpoint(
    path: Path, settings: dict[str, Any], say: Callable[[str], None] = lambda line: None
) -> dict[str, Any] | None:
    """The state in `path`, or None if there is no checkpoint. Of a damaged one, the newest sound one kept beside it.

    Settings that the file lacks count as their defaults: its version did not have them yet.

    Args:
        path: the newest checkpoint.
        settings: those of the run that is to go on.
        say: called with a line that names what is damaged, and what is used in its place.

    Raises:
        CheckpointError: every file is damaged; or one is of a newer version, or belongs to a run with other settings
            (which ones is said). Settings in `TrainConfig.may_change` may differ.
    """
    if not path.is_file():
        return None
    older = [entry for _, entry in sorted(by_step(path).items(), reverse=True) if not entry.samefile(path)]
    damaged: list[str] = []
    for file in (path, *older):
        try:
            state = _state(file)
        except _Damaged as error:
            damaged.append(f"{file} cannot be read as a checkpoint: {error}")
            continue
        check_settings(file, state["settings"], settings)
        for fault in damaged:
            say(f"warning: {fault}")
        if damaged:
            say(f"going on from the one before, {file.name}")
        return state
    raise CheckpointError("; ".join(damaged) + ". There is no sound one beside it. Delete it to start again")


class _Damaged(Exception):
    """A file that holds no checkpoint, or another one than was written."""


def _with_hash(data: bytes) -> bytes:
    """A zip file with its hash as its comment, whose length is in the two bytes before it."""
    assert data[-2:] == b"\0\0", "torch.save wrote a zip file with a comment"
    return data[:-2] + _COMMENT_BYTES.to_bytes(2, "little") + _MARK + hashlib.sha256(data[:-2]).hexdigest().encode()


def _state(path: Path) -> dict[str, Any]:
    """What a file holds, of this version.

    Raises:
        CheckpointError: it is of a newer version.
        _Damaged: anything else.
    """
    try:
        data = path.read_bytes()
        body, comment = data[: -_COMMENT_BYTES - 2], data[-_COMMENT_BYTES:]
        if comment.startswith(_MARK):
            if comment[len(_MARK) :] != hashlib.sha256(body).hexdigest().encode():
                raise _Damaged("its content is not what was written, by the hash at its end")
        else:  # of a version that wrote no hash, or damaged at its end
            with zipfile.ZipFile(io.BytesIO(data)) as parts:
                if parts.testzip() is not None:
                    raise _Damaged("a part of it is not what was written, by the part's checksum")
        loaded = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
        state = FORMAT.migrated({VERSION_KEY: 1, **loaded})  # the first files did not say it
        that_matter(state["settings"])
    except VersionError as error:
        raise CheckpointError(f"{path} cannot go on here: {error}. To start again, write to another folder") from error
    except _UNREADABLE as error:
        raise _Damaged(str(error) or type(error).__name__) from error
    return state


# What zipfile and torch raise on the way through a file that somebody or something changed.
_UNREADABLE = (
    *(
        OSError,
        RuntimeError,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        ArithmeticError,
        MemoryError,
    ),
    *(pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error),
)


def _public(name: str, settings: Mapping[str, Any]) -> str:
    """A setting's value in words, without secrets."""
    return repr(public_settings({name: settings.get(name)})[name])


def check_settings(path: Path, in_file: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise unless what was made with some settings belongs to a run with these.

    Args:
        path: what was made, for the error.
        in_file: the settings it was made with.
        settings: those of today.

    Raises:
        CheckpointError: they differ in more than `TrainConfig.may_change`.
    """
    saved = that_matter(in_file)
    today, complete = that_matter(settings), with_defaults(saved)
    gone = sorted(saved.keys() - today.keys())
    if gone:
        named = ", ".join(f"{name} = {_public(name, saved)}" for name in gone)
        raise CheckpointError(
            f"{path} was made by a version of diffusion-nft with settings that this one does not have ({named}). "
            "Finish the run with the version that began it, or start again in another folder"
        )
    differing = sorted(name for name in today if today[name] != complete.get(name))
    if differing:
        changes = ", ".join(f"{name} {_public(name, complete)} -> {_public(name, today)}" for name in differing)
        raise CheckpointError(
            f"{path} belongs to a run with other settings ({changes}). Write to another folder, or delete it"
        )
