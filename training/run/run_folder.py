"""A run's folder belongs to one run at a time, and says when its run is finished."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from nft_pipeline.adapters.write import CARD_NAMES
from nft_pipeline.files.atomic import atomic_write_bytes

from ..devices import processes
from ..errors import TrainingError
from ..settings.config import TrainConfig
from ..settings.public import public_settings
from .checkpoint import CheckpointError, check_settings, relabel

FINISHED = "finished.json"
ADAPTER = "adapter"
CHECKPOINT = "checkpoint.pt"
LAST = "last.pt"  # the state of a finished run, for one that goes on from it
LENGTHS = ("steps", "rounds")
TOGETHER = ".together"  # what the processes of a run see to know that they have one folder
PATIENCE = 20.0  # seconds; a disk that machines share may show a new file late


@contextlib.contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Within this context no other process can train in the folder; the system gives it back if this one is killed.

    Args:
        out: the run's folder, which exists.

    Raises:
        TrainingError: another process trains there.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(out / ".run.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise TrainingError(
            f"another process is training in {out}. Wait until it is done, or give another folder with --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


def check_one_folder(out: Path) -> None:
    """See that the processes of a run have one folder, also where they are on several machines.

    Args:
        out: the run's folder, which exists.

    Raises:
        TrainingError: in every process, where some of them have another folder than the first.
    """
    if processes.count() == 1:
        return
    path, is_first = out / TOGETHER, processes.rank() == 0
    token = secrets.randbelow(2**50)
    if is_first:
        path.write_text(str(token))
    wanted = int(processes.sum_numbers({"token": float(token if is_first else 0)})["token"])
    patience = time.monotonic() + PATIENCE
    while not (found := _number_in(path) == wanted) and time.monotonic() < patience:
        time.sleep(0.2)
    is_apart = processes.any_true(not found)  # only now has everybody looked
    if is_first:
        path.unlink(missing_ok=True)
    if is_apart:
        mine = (
            "" if found else f" It is another one for the process of rank {processes.rank()} on {socket.gethostname()}."
        )
        raise TrainingError(
            f"the processes of this run do not have one folder: {out.resolve()} is not the same on all machines.{mine} "
            "Give an --out on a disk that all of them share, under the same path"
        )


def _number_in(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def mark_finished(out: Path, config: TrainConfig) -> None:
    """Write down that the run with these settings is done and its adapter is there; keep its last state beside it.

    A checkpoint goes when the run is done, what stays behind may be passed on: its settings are those that others may
    see.
    """
    checkpoint, settings = out / CHECKPOINT, public_settings(config.to_dict())
    if checkpoint.is_file():
        with contextlib.suppress(CheckpointError):  # a damaged one is of no use to a run that goes on
            relabel(checkpoint, out / LAST, settings)
        checkpoint.unlink()
    atomic_write_bytes(out / FINISHED, (json.dumps({"settings": settings}, indent=2) + "\n").encode())


def is_finished(out: Path, config: TrainConfig) -> bool:
    """Whether the run with these settings is done and its adapter still there; without the adapter it starts again.

    Raises:
        CheckpointError: a run with other settings was finished there.
    """
    path = out / FINISHED
    if not path.is_file() or not (out / ADAPTER).is_dir():
        return False
    today = public_settings(config.to_dict())
    try:
        settings = json.loads(path.read_text("utf-8"))["settings"]
    except (ValueError, KeyError, TypeError, RecursionError):  # damaged: it says nothing, and the adapter is there
        settings = today
    check_settings(out / ADAPTER, settings, today)
    return True


def go_on_from_finished(out: Path, config: TrainConfig) -> None:
    """If a run with these settings but fewer steps or rounds is finished here, make its last state a checkpoint.

    Raises:
        CheckpointError: the finished run had other settings, or was longer; or its last state is gone.
    """
    path = out / FINISHED
    if not path.is_file() or not (out / ADAPTER).is_dir():
        return
    today = public_settings(config.to_dict())
    try:
        settings = json.loads(path.read_text("utf-8"))["settings"]
        lengths = {name: int(settings[name]) for name in LENGTHS}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged, so nothing says which run is finished there: {error}") from error
    check_settings(out / ADAPTER, {**settings, **{name: today[name] for name in LENGTHS}}, today)
    if all(lengths[name] == today[name] for name in LENGTHS):
        return
    if any(lengths[name] > today[name] for name in LENGTHS):
        words = " and ".join(f"{name} {length}" for name, length in lengths.items())
        raise CheckpointError(f"{out} holds a run that is longer already ({words}); give a larger --more")
    if not (out / LAST).is_file():
        raise CheckpointError(
            f"{out / LAST} is gone, so the finished run cannot go on. Train its adapter further in another folder, "
            f"with init_from: {out / ADAPTER}"
        )
    relabel(out / LAST, out / CHECKPOINT, config.to_dict())
    path.unlink()


def card_files(folder: Path) -> dict[str, bytes]:
    """What stands beside an adapter in its folder, by relative path, for `write_adapter` to put back."""
    found = [path for name in CARD_NAMES for path in (folder / name, *(folder / name).rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
