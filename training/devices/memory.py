"""Turns an out-of-memory error into advice: which settings to change, and what each change costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import TrainingError

_ADVICE = {
    "training": (
        "Lower micro_batch (now {micro_batch}, 0 is the whole batch at once; the result stays the same), then set "
        "gradient_checkpointing: true, then quantise: nf4, then lower resolution or rank"
    ),
    "sampling": "Lower pool_batch (now {pool_batch}), then resolution",
}


@contextmanager
def memory_advice(doing: str, **settings: int) -> Iterator[None]:
    """Turn an allocation failure within into a `TrainingError` that names the keys to change.

    Args:
        doing: "training" or "sampling".
        settings: present values that the advice mentions.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory while {doing}: {str(error).splitlines()[0] if str(error) else type(error).__name__}. "
            f"{_ADVICE[doing].format(**settings)}. The same command then goes on from the last checkpoint"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a failed allocation, on a GPU or a CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in said or "not enough memory" in said)
