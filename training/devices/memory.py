"""Turns an out-of-memory error into advice: what may change in a run that goes on, and what needs another."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..errors import TrainingError

_OTHERS = "Close other programs that use the same memory"
_ALONE = "That was one at a time. " + _OTHERS
# What may change in a run that goes on, and what needs another one.
ADVICE = {
    "encoding prompts": (f"{_ALONE}; no setting makes the text encoders smaller", ""),
    "encoding pictures": (_ALONE, "set a lower resolution"),
    "drawing": (
        f"{_ALONE}. Pictures that only show or measure can be left out with samples_every: 0, sweep_size: 0 and "
        "calibration_pictures: 0",
        "set a lower resolution, or quantise: int8 or nf4",
    ),
    "decoding": (
        f"{_ALONE}. Pictures that only show or measure can be left out with samples_every: 0, sweep_size: 0 and "
        "calibration_pictures: 0",
        "set a lower resolution",
    ),
    "reading alpha": (_ALONE, "set a lower resolution, or quantise: int8 or nf4"),
    "scoring": (f"{_OTHERS}, or serve the reward from another machine with `diffusion-nft reward serve`", ""),
    "training": (
        "Lower micro_batch (now {micro_batch}, 0 is the whole batch at once; a run of one process has tried "
        "down to 1), then set gradient_checkpointing: true; the result stays the same",
        "set quantise: int8 or nf4, a lower resolution or a lower rank",
    ),
}


@contextmanager
def memory_advice(doing: str, **settings: int) -> Iterator[None]:
    """Turn an allocation failure within into a `TrainingError` that names the keys to change.

    Args:
        doing: a phase of a run, one of `ADVICE`.
        settings: present values that the advice mentions: micro_batch while training.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        now, anew = ADVICE[doing]
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        goes_on = f"{now.format(**settings)}. The same command then goes on from what is there"
        begins_again = f". In another folder, which begins again: {anew}" if anew else ""
        raise TrainingError(f"out of memory while {doing}: {first}. {goes_on}{begins_again}") from error


def peak_gib(device: torch.device) -> float:
    """GiB of the device's memory that were in use at most so far; on a CPU the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource  # not on Windows
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@contextmanager
def peak_within(device: torch.device) -> Iterator[dict[str, float]]:
    """GiB of memory that were in use at most within, as "GiB" of the mapping that is given, from its end on.

    On CUDA it is what tensors took, on a CPU the whole process, the files included that it reads its weights from. It
    begins the count of `peak_gib` anew. The mapping stays empty where the system does not tell.
    """
    found: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found["GiB"] = peak_gib(device)
        return
    counts = _forget_peak()
    yield found
    if counts and (peak := _peak_since()) is not None:
        found["GiB"] = peak


def _forget_peak() -> bool:
    """Have Linux count the largest size of this process anew; whether it does."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_since() -> float | None:
    """GiB that this process had at most since then."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    sizes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return sizes[0] / 2**20 if sizes else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a failed allocation, on a GPU or a CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in words or "not enough memory" in words)
