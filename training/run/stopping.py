"""Stopping a run from outside: the first Ctrl-C or SIGTERM lets it finish its step and save, the second ends it."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(RuntimeError):
    """The run was asked to stop and has saved what it had; the message says how to go on."""


class Stopper:
    """Within its `with` block, a first signal sets `requested` and a second one does what it did before.

    Signal handlers belong to the main thread; elsewhere this never stops anything.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._first) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_back()

    def _first(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._give_back()
        print(
            f"\n{signal.Signals(number).name}: finishing this step, then saving. Once more ends the run at once.",
            flush=True,
        )

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
