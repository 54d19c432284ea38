"""A clone in custom_nodes is imported by path and under another name, with nothing of it on sys.path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.repository import ROOT
from nft_pipeline.models import ADAPTERS, MODELS

PROBE = """
import asyncio, importlib.util, sys
from pathlib import Path
root = Path(sys.argv[1])
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != root]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("custom_x_nodes", root / "__init__.py",
                                              submodule_search_locations=[str(root)])
module = importlib.util.module_from_spec(spec)
sys.modules["custom_x_nodes"] = module
spec.loader.exec_module(module)
print(sorted(set(sys.modules) - before))
print((root / module.WEB_DIRECTORY).is_dir(), hasattr(module, "NODE_CLASS_MAPPINGS"))
try:
    asyncio.run(module.comfy_entrypoint())
except ImportError as error:
    print(error)
print(Path(sys.modules["nft_pipeline"].__file__).parent == root / "nft_pipeline")
"""


def test_nothing_is_imported_before_comfyui_asks_and_then_the_clones_own_package(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROBE, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    brought, web, asked, own = done.stdout.splitlines()
    assert brought == "['custom_x_nodes']"
    assert web == "True False"
    assert asked == "No module named 'comfy'"
    assert own == "True"


def test_the_registrys_archive_has_what_the_nodes_need_and_no_more() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, and the patterns are git's")
    command = ["git", "ls-files", "-z", "--cached", "--ignored", "--exclude-from=.comfyignore"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    models = {Path(name).parts[2] for name in listed if name.startswith("nft_pipeline/")}
    templates = [ROOT / name for name in listed if name.startswith("example_workflows/")]
    left_out = {Path(name).parts[0] for name in listed if name} - {"nft_pipeline", "example_workflows"}
    rooms = {"docs", "hub_cards", "tests", "training"}
    tools = {".ci", ".github", ".pre-commit-config.yaml", "CITATION.cff", "Makefile", "constraints.txt", "mkdocs.yml"}
    assert left_out == rooms | tools
    assert models == {name for name in (*MODELS, *ADAPTERS) if name.startswith("emoji")}
    files = (ROOT / "example_workflows").iterdir()
    draw_with_it = {path.stem for path in files if path.suffix == ".json" and '"emoji"' in path.read_text()}
    assert draw_with_it and {(path.stem, path.suffix) for path in templates} == {
        (stem, suffix) for stem in draw_with_it for suffix in (".json", ".jpg")
    }
