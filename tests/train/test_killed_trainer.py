"""A run killed with SIGKILL at random moments ends, when it is let, in the same weights bit for bit."""

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
def test_killed_at_random_moments():
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "3"],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(TREE)},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = re.findall(r"\| (\w+) \| 12 \| [\d.]+ \| (\d) \| [\d ]+ \| equal \|", run.stdout)
    assert [kind for kind, _ in found] == ["offline", "online"] and all(int(kills) >= 1 for _, kills in found)
