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
# What a library could change for the whole process behind its user's back.
HOOKS = """
import atexit, builtins, logging, os, signal, sys, threading, warnings
import torch

def hooks():
    root, own = logging.getLogger(), logging.getLogger("nft_pipeline")
    return {
        "meta_path": list(sys.meta_path), "path_hooks": list(sys.path_hooks), "path": list(sys.path),
        "importers": builtins.__import__, "excepthook": sys.excepthook, "unraisablehook": sys.unraisablehook,
        "displayhook": sys.displayhook, "trace": sys.gettrace(), "profile": sys.getprofile(),
        "threads": [threading.excepthook, threading.gettrace(), threading.getprofile(), threading.active_count()],
        "warnings": [list(warnings.filters), warnings.showwarning],
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "logging": [root.level, list(root.handlers), root.manager.disable, logging.getLoggerClass(), own.level,
                    own.handlers],
        "atexit": atexit._ncallbacks(), "environment": dict(os.environ),
        "torch": [torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
                  torch.get_rng_state().tolist(), torch.are_deterministic_algorithms_enabled(),
                  hasattr(torch.ops.torchvision, "nms")],
    }

before = hooks()
import nft_pipeline
after = hooks()
print([name for name in before if before[name] != after[name]])
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


def test_import_touches_no_hook_of_the_process() -> None:
    assert fresh_python(HOOKS).strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["nosuch"], ["sample", "--help"], ["info", "--help"], ["train", "--explain"]],
)
def test_help_does_not_even_import_torch(arguments: list[str]) -> None:
    code = f"import sys; from nft_pipeline.cli import main; main({arguments!r}); print('torch' in sys.modules)"
    assert fresh_python(code).splitlines()[-1] == "False"
