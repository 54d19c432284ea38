"""Which files an adapter's folder or repository may hold, and how large they may be.

Nothing but safetensors, JSON, Markdown and, for the card, PNG is ever opened, whatever else lies there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from nft_pipeline.adapters.foreign.files import PICKLES
from nft_pipeline.adapters.names import (
    COMFYUI_FOLDER,
    CONFIG_FILE,
    HEAD_CONFIG_FILE,
    HEAD_FILE,
    LORA_FILE,
    MAX_HEAD_BYTES,
    MAX_LORA_BYTES,
    MAX_PICTURE_BYTES,
)
from nft_pipeline.files.atomic import recover
from nft_pipeline.files.strict import read_beginning

from .card import CARD_FILE
from .report import REPORT_FILE

MAX_TEXT_BYTES = 1_000_000
MAX_PICTURES = 200
MAX_PIXELS = 50_000_000
HUB_OWN = (".gitattributes", "LICENSE", "LICENSE.md", "LICENSE.txt")  # what the Hub or its site may add
_SIZES = {
    CONFIG_FILE: MAX_TEXT_BYTES,
    REPORT_FILE: MAX_TEXT_BYTES,
    CARD_FILE: MAX_TEXT_BYTES,
    HEAD_CONFIG_FILE: MAX_TEXT_BYTES,
    LORA_FILE: MAX_LORA_BYTES,
    HEAD_FILE: MAX_HEAD_BYTES,
}
_PATTERNS = (
    (re.compile(rf"{COMFYUI_FOLDER}/[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors"), MAX_LORA_BYTES + MAX_HEAD_BYTES),
    (re.compile(r"(samples|plots)/[A-Za-z0-9][A-Za-z0-9._-]*\.png"), MAX_PICTURE_BYTES),
)


def largest(path: str) -> int | None:
    """How many bytes a file of an adapter may have at most; None if it is not a file of an adapter."""
    if path in _SIZES:
        return _SIZES[path]
    return next((size for pattern, size in _PATTERNS if pattern.fullmatch(path)), None)


def listing_faults(sizes: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """Faults that show in names and sizes alone, as (file, what, what to do).

    Args:
        sizes: bytes by path relative to the adapter's folder.
    """
    faults = []
    for path, size in sorted(sizes.items()):
        most = largest(path)
        if path.endswith(PICKLES):
            faults.append((path, "is a pickle, which can run code and is never loaded", "delete it"))
        elif most is None and path not in HUB_OWN:
            faults.append((path, "is no part of an adapter", "move it out of the folder"))
        elif most is not None and size > most:
            faults.append((path, f"is {size:,} bytes long, at most {most:,} are read", "make it smaller or delete it"))
        elif size == 0 and most is not None:
            faults.append((path, "is empty", "write or download it again"))
    pictures = [path for path in sizes if path.endswith(".png") and largest(path)]
    if len(pictures) > MAX_PICTURES:
        faults.append(("samples", f"and plots hold {len(pictures)} pictures", f"keep at most {MAX_PICTURES}"))
    return faults


def folder_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file by relative path; hidden files that editors and systems leave are passed over.

    Whoever reads an adapter for its card begins here, so pictures that a killed `draw_samples` left aside get their
    name back first.
    """
    recover(folder / "samples")
    names = {path: path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.stat().st_size for path, name in names.items() if not _is_litter(name)}


def read_texts(folder: Path, sizes: Mapping[str, int], tensors: bool = True) -> dict[str, bytes]:
    """The contents of the adapter's own files that are not too large.

    Args:
        folder: the adapter.
        sizes: bytes by path, as `folder_sizes` gives them.
        tensors: False gives safetensors files up to the end of their headers.
    """
    wanted = [path for path, size in sizes.items() if size <= (largest(path) or -1)]
    whole = {path: tensors or not path.endswith(".safetensors") for path in wanted}
    return {path: (folder / path).read_bytes() if whole[path] else read_beginning(folder / path) for path in wanted}


def png_pixels(data: bytes) -> int:
    """How many pixels a PNG says it has; 0 if it is cut off before that."""
    return int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big") if len(data) >= 24 else 0


def _is_litter(name: str) -> bool:
    parts = name.split("/")
    return parts[-1] in (".DS_Store", "Thumbs.db", "desktop.ini") or parts[0] in (".git", ".cache")
