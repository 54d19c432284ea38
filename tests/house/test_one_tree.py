"""A checkout is one import tree, and the type checker sees imports across rooms: each fault is planted and found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.one_tree import PACKAGE, make_tree
from helpers.one_tree import ROOMS as ROOT_ROOMS
from helpers.repository import ROOT, repository_files

# Imports one light module of every room and prints the ones that come from elsewhere.
PROBE = """
import importlib, pathlib, sys
here = pathlib.Path(sys.argv[1])
names = ["", ".errors", ".training", ".training.settings.choices", ".comfy_nodes", ".hub_cards", ".hub_cards.contents"]
for name in names:
    path = importlib.import_module("nft_pipeline" + name).__file__
    if not pathlib.Path(path).is_relative_to(here):
        print("nft_pipeline" + name, path)
"""


OTHERS_UNREAD = """
[[tool.mypy.overrides]]
module = ["PIL.*", "huggingface_hub.*", "jinja2.*", "numpy.*", "pydantic.*", "safetensors.*", "torch.*"]
follow_imports = "skip"
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A second checkout: the package's sources and pyproject.toml."""
    for path in repository_files():
        inside = path.relative_to(ROOT)
        if (inside.parts[0] in {PACKAGE, *ROOT_ROOMS} and path.suffix == ".py") or str(inside) == "pyproject.toml":
            (tmp_path / inside).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / inside).write_bytes(path.read_bytes())
    return tmp_path


def strangers(checkout: Path) -> str:
    """What the probe prints with `checkout` alone on PYTHONPATH, or its error, which a missing room is."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-c", PROBE, str(checkout)]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=120)
    return done.stdout + done.stderr


def test_a_second_checkout_on_the_path_is_whole(copy: Path) -> None:
    assert strangers(copy) == ""


def test_half_a_checkout_is_noticed(copy: Path) -> None:
    door = copy / PACKAGE / "__init__.py"
    text = door.read_text(encoding="utf-8")
    assert text.count("__path__.append(") == 1
    door.write_text(text.replace("__path__.append(", "print("), encoding="utf-8")
    assert "nft_pipeline.training" in strangers(copy)


def test_a_wrong_call_across_rooms_is_a_type_error(tmp_path: Path, copy: Path) -> None:
    source = copy / "training" / "planted.py"
    source.write_text(
        "from nft_pipeline.hub_cards.report import RunReport\n\nreport = RunReport('no such argument', nonsense=1)\n",
        encoding="utf-8",
    )
    tree = make_tree(tmp_path / "tree", root=copy)
    # Other people's packages, which take most of a minute to read, are none of this test's business.
    config = copy / "pyproject.toml"
    config.write_text(config.read_text(encoding="utf-8") + OTHERS_UNREAD, encoding="utf-8")
    # Only the planted module is reported, so that the answer does not depend on the rest being clean.
    options = ["--config-file", str(config), "--cache-dir", str(tmp_path / "cache")]
    options += ["--follow-imports", "silent", "--no-error-summary"]
    command = [sys.executable, "-m", "mypy", *options, f"{PACKAGE}/training/planted.py"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and 'Unexpected keyword argument "nonsense" for "RunReport"' in done.stdout, done
