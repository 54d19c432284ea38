"""What pip would install: the extra `train` leaves torch as pinned. Asked of the resolver; nothing is installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.repository import ROOT, repository_files

# What pip says when it reaches no index, as opposed to one that lacks a version.
OFFLINE = r"NewConnectionError|ConnectTimeout|NameResolutionError|Temporary failure|ProxyError|Network is unreachable"


@pytest.mark.slow
def test_the_extra_train_leaves_torch_as_pinned(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for path in repository_files():
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    # As in a bare environment: what is installed here does not count.
    options = ["--dry-run", "--ignore-installed", "--no-build-isolation", "--retries", "1", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--report", str(tmp_path / "report.json")]
    command += ["-c", str(source / "constraints.txt"), f"{source}[train]"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode and re.search(OFFLINE, done.stderr):
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    chosen = {entry["metadata"]["name"].lower(): entry["metadata"]["version"] for entry in report["install"]}
    pinned = dict(re.findall(r"^(torch|torchvision)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {name: chosen[name].partition("+")[0] for name in pinned} == pinned
    assert chosen["image-reward"] and not [name for name in chosen if name.startswith("triton")]
