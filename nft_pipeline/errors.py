"""The errors that the library raises on purpose: an adapter, a model or a setting that cannot be used, and what to do.

Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence

SHOWN_FAULTS = 20


class AdapterError(ValueError):
    """An adapter cannot be read, written or used as asked.

    Args:
        what: what happened and to which adapter.
        faults: the single faults, one sentence each; the first 20 are listed below `what`, all are in `.faults`.
        advice: what to do next.
    """

    def __init__(self, what: str, faults: Sequence[str] = (), advice: str = "") -> None:
        self.what, self.faults, self.advice = what, tuple(faults), advice
        lines = [what + (":" if faults else ""), *(f"  - {fault}" for fault in self.faults[:SHOWN_FAULTS])]
        if len(self.faults) > SHOWN_FAULTS:
            lines.append(f"  ... and {len(self.faults) - SHOWN_FAULTS} more")
        super().__init__("\n".join([*lines, advice] if advice else lines))


class GuidanceError(ValueError):
    """Guidance was asked for in a way that cannot be done, or found something it must not work with."""


class FamilyError(ValueError):
    """A denoiser that this version cannot guide, or a call of it that it cannot read."""
