"""What pip would install: the extra `train` leaves people's torch, timm and transformers alone, `image-reward` leaves
torch as pinned. Asked of the resolver; nothing is installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from helpers.repository import ROOT, repository_files

# What pip says when it reaches no index, as opposed to one that lacks a version.
OFFLINE = r"NewConnectionError|ConnectTimeout|NameResolutionError|Temporary failure|ProxyError|Network is unreachable"
PINS_OF_OTHERS = {"fairscale", "image-reward", "timm", "torchvision"}


@pytest.mark.long
@pytest.mark.parametrize("extra", ["train", "image-reward"])
def test_what_an_extra_would_install(extra: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for path in repository_files():
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    # As in a bare environment: what is installed here does not count.
    options = ["--dry-run", "--ignore-installed", "--no-build-isolation", "--retries", "1", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--report", str(tmp_path / "report.json")]
    command += ["-c", str(source / "constraints.txt"), f"{source}[{extra}]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode and re.search(OFFLINE, done.stderr):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    chosen = {entry["metadata"]["name"].lower(): entry["metadata"]["version"] for entry in report["install"]}
    pinned = dict(re.findall(r"^(torch|torchvision)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {name: chosen[name].partition("+")[0] for name in pinned if name in chosen} == {
        name: version for name, version in pinned.items() if name in chosen
    }
    assert chosen["torch"] and not [name for name in chosen if name.startswith("triton")]
    assert PINS_OF_OTHERS & chosen.keys() == (PINS_OF_OTHERS if extra == "image-reward" else set())


def test_every_python_that_is_named_can_have_what_is_asked_for() -> None:
    """diffusers 0.41, the last one for Python 3.10, wants huggingface-hub 1; later ones want 2."""
    project = (ROOT / "pyproject.toml").read_text()
    (hub,) = re.findall(r'"huggingface-hub(>=[^"]*)"', project)
    bounds = SpecifierSet(hub)
    assert bounds.contains("1.33.0") and bounds.contains("2.4.0") and not bounds.contains("3.0")
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line.startswith(("diffusers==", "huggingface-hub=="))]
    assert len(pins) == 2 and all(pin.endswith('; python_version >= "3.11"') for pin in pins)
