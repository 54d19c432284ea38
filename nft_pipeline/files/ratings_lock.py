"""One writer at a time in a folder of ratings: the trainer's tools and ComfyUI's nodes may have it open at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

METADATA = "metadata.jsonl"  # of a folder of pictures: prompts, ratings and scores


@contextmanager
def ratings_lock(folder: Path) -> Iterator[None]:
    """Wait until nobody else changes the folder's metadata.jsonl, and keep others waiting inside the block.

    Args:
        folder: made when missing.

    Raises:
        OSError: the folder cannot be made or written.
    """
    from filelock import FileLock  # comes with huggingface_hub, hence with ComfyUI as well

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{METADATA}.lock"):
        yield
