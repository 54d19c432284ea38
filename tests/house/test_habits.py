"""Habits: workflows and hooks call make targets, versions agree, the site has every page, the node pack is small."""

from __future__ import annotations

import importlib.util
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import nft_pipeline
from helpers.node_pack import MAX_NODE_PACK_BYTES, write_pack, zip_pack
from helpers.repository import ROOT
from helpers.try_release import versions

TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
in_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not in a git checkout")


def make_site() -> Any:
    """The hooks in docs/make_site.py, which is no package."""
    spec = importlib.util.spec_from_file_location("make_site", ROOT / "docs" / "make_site.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_make_targets_and_little_else(path: Path) -> None:
    text = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert text["name"] == path.stem and text["permissions"] == {"contents": "read"}
    assert set(text[True]) == {"push", "pull_request"}, "YAML reads the key `on` as true"
    (job,) = text["jobs"].values()
    assert {"runs-on", "timeout-minutes", "steps"} <= set(job)
    ran = [step["run"] for step in job["steps"] if "run" in step]
    made = [command.removeprefix("make ") for command in ran if command.startswith("make ")]
    assert made and set(made) <= TARGETS
    assert all(command.startswith(("make ", "git diff ")) for command in ran)


def test_there_is_a_workflow_for_tests_style_and_docs() -> None:
    assert {path.stem for path in WORKFLOWS} == {"tests", "style", "docs"}


def test_the_hook_before_a_commit_is_make_style() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == ["make style"] and "style" in TARGETS


def test_every_file_names_the_same_version() -> None:
    assert set(versions().values()) == {nft_pipeline.__version__}, versions()


def test_the_citation_is_one() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "version", "license"} <= set(citation)
    assert f'license = "{citation["license"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    lines = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"^ +- .*: ([\w/]+\.md)$", lines.partition("\nnav:\n")[2], re.MULTILINE))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert named == {"index.md", *pages}, "`nav` of mkdocs.yml and the pages in docs/ differ"


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("README.md", "docs/cfg.md", "cfg.md"),
        ("README.md", "example_workflows/a.jpg", "repository/example_workflows/a.jpg"),
        ("docs/cfg.md", "../README.md#the-dial", "index.md#the-dial"),
        ("docs/measured/tilt.md", "../theory.md", "../theory.md"),
        ("docs/cfg.md", "https://arxiv.org/abs/1", "https://arxiv.org/abs/1"),
        ("docs/cfg.md", "#here", "#here"),
        ("CONTRIBUTING.md", "docs/architecture.md", "../architecture.md"),
    ],
)
def test_links_are_rewritten_for_the_site(page: str, link: str, expected: str) -> None:
    assert make_site().rewritten(page, link) == expected


def test_links_in_code_stay_as_they_are() -> None:
    text = '[a](x.md)\n```python\nf[0](y.md)\n```\n<img src="z.png">'
    changed = make_site().links(text, lambda link: posixpath.join("new", link))
    assert changed == '[a](new/x.md)\n```python\nf[0](y.md)\n```\n<img src="new/z.png">'


@in_git
def test_the_node_pack_is_small_and_has_what_the_nodes_need(tmp_path: Path) -> None:
    files = write_pack(tmp_path / "pack")
    rooms = {path.parts[0] for path in files}
    needed = {"__init__.py", "pyproject.toml", "LICENSE", "comfy_nodes", "nft_pipeline", "locales", "subgraphs"}
    assert needed <= rooms
    assert not {"docs", "tests", "training", "hub_cards", "Makefile", ".github", "mkdocs.yml"} & rooms
    zip_pack(tmp_path / "pack", files, tmp_path / "pack.zip")
    assert (tmp_path / "pack.zip").stat().st_size <= MAX_NODE_PACK_BYTES


@in_git
def test_the_doorway_of_the_node_pack_opens(tmp_path: Path) -> None:
    write_pack(tmp_path / "pack")
    done = subprocess.run(
        [sys.executable, "-c", "import pack"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
