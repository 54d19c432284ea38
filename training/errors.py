"""The errors that several rooms of the trainer raise; an error of one room is defined in that room.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence


class ConfigError(ValueError):
    """A run's settings that cannot be used; the message lists every fault, `faults` has them one by one."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        listed = "".join(f"\n  - {fault}" for fault in faults)
        super().__init__(f"the run's settings have {len(faults)} fault{'s' * (len(faults) != 1)}:{listed}")


class TrainingError(ValueError):
    """Training cannot start or cannot go on."""
