"""`import nft_pipeline` costs next to nothing and brings no large library with it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

HEAVY = ("diffusers", "transformers", "peft", "accelerate", "matplotlib", "scipy")
PROBE = """
import json, sys, time
import torch
start = time.perf_counter()
import nft_pipeline
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def probes() -> list[dict[str, Any]]:
    """Up to three measurements; the quickest counts, the others waited for a busy machine."""
    found: list[dict[str, Any]] = []
    while len(found) < 3 and (not found or found[-1]["seconds"] > 0.1):
        found.append(json.loads(fresh_python(PROBE)))
    return found


def test_import_takes_under_a_fifth_of_a_second_beyond_torch(probes: list[dict[str, Any]]) -> None:
    seconds = min(probe["seconds"] for probe in probes)
    print(f"import nft_pipeline beyond torch: {seconds:.3f} s")
    assert seconds < 0.2


def test_import_brings_no_large_library(probes: list[dict[str, Any]]) -> None:
    assert not set(HEAVY) & set(probes[0]["modules"])


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["nosuch"], ["sample", "--help"], ["info", "--help"], ["train", "--explain"]],
)
def test_help_does_not_even_import_torch(arguments: list[str]) -> None:
    code = f"import sys; from nft_pipeline.cli import main; main({arguments!r}); print('torch' in sys.modules)"
    assert fresh_python(code).splitlines()[-1] == "False"
