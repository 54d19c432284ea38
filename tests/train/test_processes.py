"""Two processes train what one does with the same batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import two_processes


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes, which this system cannot")
def test_two_processes_are_one():
    script = Path(two_processes.__file__)
    run = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert set(found) == set(two_processes.KINDS)
    for kind, values in found.items():
        assert values["moved"] > 1e-3, kind
        assert values["apart"] < 0.02 * values["moved"], kind
