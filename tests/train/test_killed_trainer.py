"""A run killed at random moments ends, when it is let, in the same files bit for bit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kills.py"
TREE = [str(SCRIPT.parents[2]), str(SCRIPT.parents[1])]  # this checkout, whichever one is installed


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its runs, which this system cannot")
def test_killed_at_random_moments(tmp_path):
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "9", "--work", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(TREE)},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \|.*\| (\d+) of (\d+) \|$", run.stdout, re.MULTILINE)
    assert [row[0] for row in rows] == ["offline", "online", "anchored", "all"]
    assert all(equal == runs for _, runs, _, equal, _ in rows) and int(rows[-1][2]) >= 9
