"""A torchvision whose compiled part does not load, as a CUDA build beside a CPU torch: importable all the same."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

# What torchvision itself does on import: load the compiled part if it can, then describe an operator of it.
BROKEN = """
import torch
try:
    torch.ops.load_library(__path__[0] + "/_C.so")
except OSError:
    pass

@torch.library.register_fake("torchvision::nms")
def meta_nms(dets, scores, iou_threshold):
    return dets

transforms = "usable"
"""


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """An environment in which torchvision is such a one."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(BROKEN)
    (package / "_C.so").write_bytes(b"needs libtorch_cuda.so")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}


def python(code: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=env)


def test_it_cannot_be_imported_alone_and_can_after_us(broken: dict[str, str]) -> None:
    alone = python("import torchvision", broken)
    assert "operator torchvision::nms does not exist" in alone.stderr
    code = "import nft_pipeline, importlib.util, torch; importlib.util.find_spec('torchvision')\n"
    code += "print(hasattr(torch.ops.torchvision, 'nms'))  # nothing is declared before it is imported\n"
    done = python(code + "import torchvision; print(torchvision.transforms)", broken)
    assert done.stdout.split() == ["False", "usable"], done.stderr


def test_the_installed_one_and_those_that_use_it_can_be_imported() -> None:
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed: pip install -c constraints.txt '.[train]'")
    done = python("import nft_pipeline, torchvision.transforms.v2; from transformers import CLIPModel; print('fine')")
    assert done.stdout.strip() == "fine", done.stderr
