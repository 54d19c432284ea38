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


def kill(tmp_path: Path, how: str) -> dict[str, Any]:
    """Run the script; what it counted."""
    # A killed process loses nothing that the kernel has, so memory will do, and waits for no disk.
    disk = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=disk) as parent:
        run = subprocess.run(
            [sys.executable, str(kill_writer.__file__), f"{parent}/a", how],
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    assert run.returncode == 0, run.stderr
    seen: dict[str, Any] = json.loads(run.stdout)
    assert seen["left over"] == ["a"]
    return seen


@pytest.mark.long
def test_killed_at_random_moments(tmp_path: Path) -> None:
    seen = kill(tmp_path, "50")
    assert seen["found the old one"] + seen["found a new one"] == 50
    assert min(seen["hit a write"], seen["found the old one"], seen["found a new one"]) >= 5  # else it was idle


def test_killed_at_every_step(tmp_path: Path) -> None:
    seen = kill(tmp_path, "steps")
    assert seen["steps"] >= 30
    assert seen["found the old one"] >= 20 and seen["found a new one"] >= 1
    assert 1 <= seen["found no folder"] <= 2  # the gap between the two renames, which reading closes
