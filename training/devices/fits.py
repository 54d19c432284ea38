"""How many rows each phase of a run puts through a model at once: what was asked for, or less where less fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from .memory import is_out_of_memory, memory_advice

T = TypeVar("T")


class Fits:
    """Splits rows into parts that fit. What a phase was found to have room for holds for the rest of the run.

    Args:
        device: of the run.

    Attributes:
        room: by phase, how many rows at once fit where not all that were asked for did.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.room: dict[str, int] = {}

    def parts(self, phase: str, rows: Tensor, size: int, act: Callable[[Tensor], T]) -> Iterator[tuple[Tensor, T]]:
        """Call `act` on one part of the rows after another, and yield each part with what `act` returned.

        Args:
            phase: a phase of `nft_pipeline.training.devices.memory.ADVICE`.
            rows: (n,).
            size: rows of a part, at most. Where memory runs out it is halved, and the part is done again.
            act: has no effect if it fails.

        Raises:
            TrainingError: memory runs out with a single row.
        """
        place = 0
        while place < len(rows):
            part = rows[place : place + min(size, self.room.get(phase, size))]
            result = self._tried(phase, part, act)
            if result is None:  # only now has the failed attempt let go of its tensors
                self.room[phase] = len(part) // 2
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            yield part, result[0]
            place += len(part)

    def _tried(self, phase: str, part: Tensor, act: Callable[[Tensor], T]) -> tuple[T] | None:
        """What `act` returned, None if memory ran out."""
        if len(part) == 1:
            with memory_advice(phase):
                return (act(part),)
        try:
            return (act(part),)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None
