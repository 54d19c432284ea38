"""The package as one tree on disk, in which a path is an import: what a wheel holds, as links into the checkout.

    python tests/helpers/one_tree.py FOLDER      then FOLDER/nft_pipeline/training/... is the checkout's training/...

The rooms stand at the repository's root and are imported as nft_pipeline.training and so on, which no type checker can
follow. Over this tree mypy and pyright see every import across rooms. `make style` makes it in .venv/tree.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "nft_pipeline"
ROOMS = ("training", "comfy_nodes", "hub_cards")


def make_tree(folder: Path, root: Path = ROOT) -> Path:
    """Make the tree anew in `folder`, of the checkout at `root`.

    Directories are real ones and files are links: a checker that resolves links still sees each file once, under its
    import's path.

    Returns:
        The folder.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for source, inside in [(root / PACKAGE, PACKAGE), *((root / room, f"{PACKAGE}/{room}") for room in ROOMS)]:
        for path in source.rglob("*.py"):
            link = folder / inside / path.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    (folder / PACKAGE / "py.typed").touch()
    return folder


if __name__ == "__main__":
    make_tree(Path(sys.argv[1]))
