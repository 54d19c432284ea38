"""The line under a node while it samples: often enough to be read, and not so often that the page lags behind.

A small model draws a hundred steps per second, and ComfyUI's page draws a node anew for every text that it gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic

PAUSE = 0.1  # seconds between two texts; nobody reads faster


class LiveText:
    """Shows the first text at once, and then the newest of every `PAUSE`.

    Args:
        show: brings a text to the page.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show, self._shown_at = show, -math.inf
        self._waiting: Callable[[], str] | None = None

    def offer(self, text: Callable[[], str]) -> None:
        """A newer text, which is made only if it is shown."""
        self._waiting = text
        if monotonic() - self._shown_at >= PAUSE:
            self.settle()

    def settle(self) -> None:
        """Show the newest text now, if it has not been: there will be no other."""
        if self._waiting is not None:
            self._show(self._waiting())
            self._waiting, self._shown_at = None, monotonic()
