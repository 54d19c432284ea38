"""A writer killed at random moments: the folder is the old adapter or the new one, whole, and the next write works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from helpers import kill_writer
from helpers.disk import can_exchange


def kill(tmp_path: Path, how: str, way: str) -> dict[str, Any]:
    """Run the script; what it counted."""
    # A killed process loses nothing that the kernel has, so memory will do, and waits for no disk.
    disk = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    if way == "exchange" and not can_exchange(disk):
        pytest.skip("this system cannot exchange two folders")
    with tempfile.TemporaryDirectory(dir=disk) as parent:
        run = subprocess.run(
            [sys.executable, str(kill_writer.__file__), f"{parent}/a", how, way],
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    assert run.returncode == 0, run.stderr
    seen: dict[str, Any] = json.loads(run.stdout)
    assert seen["left over"] == ["a"]
    return seen


def test_killed_at_random_moments(tmp_path: Path) -> None:
    seen = kill(tmp_path, "50", "exchange")
    assert seen["found the old one"] + seen["found a new one"] == 50
    assert min(seen["hit a write"], seen["found the old one"], seen["found a new one"]) >= 5  # else it was idle
    assert seen["found no folder"] == 0  # not even a reader that knows nothing of `settle` finds a gap


@pytest.mark.parametrize("way", ["exchange", "aside"])
def test_killed_at_every_step(tmp_path: Path, way: str) -> None:
    seen = kill(tmp_path, "steps", way)
    assert seen["steps"] >= 30
    assert seen["found the old one"] >= 20 and seen["found a new one"] >= 1
    # Without an exchange there is one gap, between the two renames, and reading closes it.
    assert (seen["found no folder"] == 0) == (way == "exchange")
