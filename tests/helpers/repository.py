"""Where the repository is, and which files belong to it."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    "nft_pipeline": "nft_pipeline",
    "training": "nft_pipeline.training",
    "comfy_nodes": "nft_pipeline.comfy_nodes",
    "hub_cards": "nft_pipeline.hub_cards",
    "example_workflows": "nft_pipeline.example_workflows",
}
_NOT_OURS = {".git", ".venv", "build", "demo", "dist", "runs", "__pycache__"}


def repository_files() -> list[Path]:
    """Files git tracks or would track; in an unpacked archive, without git, all but what make and Python leave."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
        return [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    files = (path for path in ROOT.rglob("*") if path.is_file())
    return [path for path in files if not _NOT_OURS & set(path.relative_to(ROOT).parts)]
