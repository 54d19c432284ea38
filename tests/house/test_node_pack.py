"""The node pack's own pyproject.toml, as ComfyUI's tools read it; with comfy-cli's own code where that is installed.

COMFY_CLI names an interpreter that has comfy-cli. It cannot share an environment with everything else here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from helpers.node_pack import MAX_NODE_PACK_BYTES, own_project, tomllib, write_pack
from helpers.repository import ROOT

COMFY_CLI = os.environ.get("COMFY_CLI", "")
ADDRESS = "https://github.com/someone/diffusion-nft"
in_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
with_cli = pytest.mark.skipif(not COMFY_CLI, reason="COMFY_CLI names no interpreter that has comfy-cli")
READ = """
import json, sys
from comfy_cli.registry import extract_node_configuration
project = extract_node_configuration()
urls, comfy = project.project.urls, project.tool_comfy
print(json.dumps({
    "name": project.project.name, "version": project.project.version, "dependencies": project.project.dependencies,
    "licence": str(project.project.license.file or project.project.license.text), "repository": urls.repository,
    "publisher": comfy.publisher_id, "display": comfy.display_name, "icon": comfy.icon, "banner": comfy.banner_url}))
"""


def project(repository: str = "") -> Any:
    return tomllib.loads(own_project(repository))


def test_the_nodes_need_nothing_that_comfyui_does_not_have() -> None:
    whole, own = tomllib.loads((ROOT / "pyproject.toml").read_text()), project(ADDRESS)
    assert own["project"]["dependencies"] == []
    assert "optional-dependencies" not in own["project"] and "build-system" not in own
    for name in ("name", "version", "description", "requires-python", "classifiers"):
        assert own["project"][name] == whole["project"][name]
    assert own["project"]["urls"]["Repository"] == ADDRESS
    assert {"aesthetic", "lora strength", "preference", "xy plot"} <= set(own["project"]["keywords"])
    assert whole["tool"]["comfy"].items() <= own["tool"]["comfy"].items()
    assert "urls" not in project()["project"] and "Icon" not in project()["tool"]["comfy"]


def test_icon_and_banner_are_pictures_of_the_size_that_the_registry_wants() -> None:
    comfy = project(f"{ADDRESS}.git")["tool"]["comfy"]
    for name, ratio, most in (("Icon", 1, 400), ("Banner", 21 / 9, 1260)):
        start = "https://raw.githubusercontent.com/someone/diffusion-nft/main/"
        assert comfy[name].startswith(start)
        with Image.open(ROOT / comfy[name].removeprefix(start)) as picture:
            assert picture.width / picture.height == pytest.approx(ratio, rel=0.01) and picture.width <= most


@in_git
def test_its_requirements_are_a_comment(tmp_path: Path) -> None:
    assert Path("requirements.txt") in write_pack(tmp_path / "pack")
    lines = (tmp_path / "pack" / "requirements.txt").read_text().splitlines()
    assert lines and all(line.startswith("#") for line in lines)


@in_git
@with_cli
def test_comfy_cli_reads_validates_and_packs_it_without_a_warning(tmp_path: Path) -> None:
    pack, home = tmp_path / "pack", tmp_path / "home"
    write_pack(pack, ADDRESS)
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "DO_NOT_TRACK": "1"}
    environment["PATH"] = f"{Path(COMFY_CLI).parent}{os.pathsep}{environment['PATH']}"

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=pack, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    read = json.loads(run(COMFY_CLI, "-c", READ).splitlines()[-1])
    assert read["dependencies"] == [] and read["repository"] == ADDRESS and read["publisher"]
    assert read["icon"].endswith("node_icon.png") and read["banner"].endswith("node_banner.png")
    comfy = str(shutil.which("comfy", path=environment["PATH"]))
    said = run(comfy, "--skip-prompt", "--no-enable-telemetry", "node", "validate")
    assert "warning" not in said.lower() and "S102" not in said, said
    assert "warning" not in run(comfy, "--skip-prompt", "--no-enable-telemetry", "node", "pack").lower()
    with zipfile.ZipFile(pack / "node.zip") as archive:
        assert {"__init__.py", "pyproject.toml", "requirements.txt"} <= set(archive.namelist())
        assert not [name for name in archive.namelist() if name.startswith(("tests/", "training/", "docs/"))]
    assert (pack / "node.zip").stat().st_size <= MAX_NODE_PACK_BYTES
