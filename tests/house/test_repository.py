"""The repository itself: style, licence, pins, make targets, and nothing of the machine it was written on."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.repository import ROOT, repository_files


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("check", [("check",), ("format", "--check")], ids=["lint", "format"])
def test_ruff_is_content(check: tuple[str, ...]) -> None:
    done = run(sys.executable, "-m", "ruff", *check, "--output-format", "concise", ".")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n`make style` mends most of this"


def test_no_file_names_a_folder_of_the_machine_it_was_written_on() -> None:
    # Put together here, so that this file does not contain what it looks for.
    folders = ["work/", "root/", "home/[A-Za-z]", "Users/[A-Za-z]"]
    patterns = [rb"(?<![\w.])/" + folder.encode() for folder in folders]
    home = str(Path.home())
    if home.count("/") > 1:
        patterns.append(re.escape(home).encode())
    machine = re.compile(b"|".join(patterns))
    found = []
    for path in repository_files():
        for match in machine.finditer(path.read_bytes()):
            found.append(f"{path.relative_to(ROOT)}: {match.group()!r}")
    assert not found, "\n".join(found)


def test_no_merge_was_left_half_done() -> None:
    marker = re.compile(rb"^(<{7}|>{7}) ", re.MULTILINE)
    assert not [str(path.relative_to(ROOT)) for path in repository_files() if marker.search(path.read_bytes())]


def test_the_licence_is_the_plain_apache_2_text() -> None:
    # sha256 of https://www.apache.org/licenses/LICENSE-2.0.txt
    expected = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == expected


def test_torch_and_torchvision_are_pinned_as_a_pair() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [line for line in lines if line.startswith(("torch=", "torchvision="))]
    assert pinned == ["torch==2.13.0", "torchvision==0.28.0"]


def test_make_alone_lists_the_targets() -> None:
    done = run("make", "--silent")
    assert done.returncode == 0, done.stderr
    for target in ("demo", "test", "style", "wheel", "docs", "release"):
        assert f"make {target} " in done.stdout


def test_make_says_what_to_do_without_a_python(tmp_path: Path) -> None:
    # In a folder of its own, so that a .venv made earlier does not hide the fault.
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(["make", "test", "PYTHON="], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "No Python from 3.10 to 3.13" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_continuous_integration_is_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert text.rstrip().endswith("make test")
