"""The node pack for ComfyUI's registry: the files of the nodes, with a pyproject.toml of their own.

    dist/node_pack/diffusion-nft/       what `comfy node publish` is called in
    dist/node_pack/diffusion-nft-0.1.0.zip

The repository's pyproject.toml says what the Python package needs, and ComfyUI's tools would install all of it into an
artist's ComfyUI. The nodes need nothing beyond what ComfyUI has, so theirs lists no dependency.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:  # Python 3.10 reads no TOML, and pip brings what does
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
MAX_NODE_PACK_BYTES = 10_000_000  # ComfyUI's registry takes larger ones, but every user of the nodes downloads it
# What people who look for such nodes type.
WORDS = (
    "aesthetic",
    "lora strength",
    "preference",
    "reward",
    "rlhf",
    "xy plot",
    "contact sheet",
    "best of n",
    "guidance",
)
REQUIREMENTS = """\
# Nothing: torch, safetensors, numpy and Pillow are ComfyUI's own, and so is huggingface_hub, which one node asks for.
# ComfyUI's tools read this file instead of guessing from pyproject.toml.
"""


def node_pack() -> list[Path]:
    """The files that git tracks, without those that .comfyignore names."""

    def listed(*options: str) -> set[str]:
        done = subprocess.run(["git", "ls-files", "-z", *options], cwd=ROOT, check=True, capture_output=True, text=True)
        return set(done.stdout.split("\0")) - {""}

    left_out = listed("--cached", "--ignored", "--exclude-from=.comfyignore")
    return sorted(ROOT / name for name in listed("--cached") - left_out)


def own_project(repository: str = "") -> str:
    """pyproject.toml of the node pack.

    Args:
        repository: public address of the repository, such as "https://github.com/owner/name"; "" leaves out what needs
            one, which the registry wants: Repository, Icon and Banner.
    """
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, comfy = whole["project"], whole["tool"]["comfy"]
    lines = ["[project]", *_values({name: project[name] for name in ("name", "version", "description", "readme")})]
    lines += ['license = { file = "LICENSE" }', *_values({"requires-python": project["requires-python"]})]
    lines += [*_values({"keywords": list(WORDS), "classifiers": project["classifiers"]}), "dependencies = []", ""]
    address = repository.rstrip("/").removesuffix(".git")
    if address:
        lines += ["[project.urls]", *_values({"Repository": address, "Documentation": f"{address}/tree/main/docs"}), ""]
        pictures = address.replace("https://github.com/", "https://raw.githubusercontent.com/") + "/main/docs/pictures"
        comfy = {**comfy, "Icon": f"{pictures}/node_icon.png", "Banner": f"{pictures}/node_banner.png"}
    return "\n".join([*lines, "[tool.comfy]", *_values(comfy), ""])


def write_pack(folder: Path, repository: str = "") -> list[Path]:
    """Write the node pack into a folder, which is replaced; the names of its files, relative to it.

    Args:
        folder: where to.
        repository: see `own_project`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for path in node_pack():
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    (folder / "pyproject.toml").write_text(own_project(repository), encoding="utf-8")
    (folder / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    for command in (["init", "-q"], ["add", "-A"]):  # comfy-cli packs what git tracks, and warns where there is no git
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return files


def zip_pack(folder: Path, files: Sequence[Path], target: Path) -> None:
    """Files of the folder as a zip, as `comfy node pack` makes it."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(folder / path, path)


def _values(values: dict[str, Any]) -> list[str]:
    return [f"{name} = {_toml(value)}" for name, value in values.items()]


def _toml(value: Any) -> str:
    """Texts and lists of texts, as TOML."""
    if isinstance(value, list):
        return "[" + "".join(f"\n    {_toml(one)}," for one in value) + "\n]"
    quoted = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"'
