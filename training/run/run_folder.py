"""A run's folder belongs to one run at a time, and says when its run is finished."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from nft_pipeline.files.atomic import atomic_write_bytes

from ..errors import TrainingError
from ..settings.config import TrainConfig
from ..settings.public import public_settings
from .checkpoint import check_settings

FINISHED = "finished.json"
ADAPTER = "adapter"


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


def mark_finished(out: Path, config: TrainConfig) -> None:
    """Write down that the run with these settings is done and its adapter is there."""
    atomic_write_bytes(
        out / FINISHED, (json.dumps({"settings": public_settings(config.to_dict())}, indent=2) + "\n").encode()
    )


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
