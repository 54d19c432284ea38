"""Likes and dislikes of drawn pictures, kept as a folder that training takes."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files.picture_list import add_pictures, read_rows
from .studio import short_names

if TYPE_CHECKING:
    from .studio import Studio, Wish


def keep(folder: Path, studio: Studio, wish: Wish, liked: bool) -> str:
    """Save the picture of a wish and whether it is liked.

    Args:
        folder: made when missing. The picture of an earlier rating gets its line anew.
        studio: has drawn it.
        wish: what it is a picture of.
        liked: or disliked.

    Returns:
        What to tell the person: how many there are by now.

    Raises:
        PictureListError: the folder's metadata.jsonl cannot be read; nothing was written.
        OSError: the disk is full, or the folder cannot be written.
    """
    base = studio.config(wish.adapter).base_model.id
    facts: dict[str, Any] = {"prompt": wish.prompt, "liked": liked, "seed": wish.seed, "strength": wish.strength}
    facts |= {"adapter": wish.adapter, "model": short_names([base])[0]}
    if studio.guidance_scale is not None:
        facts["guidance_scale"] = studio.guidance_scale
    add_pictures(folder, [(studio.draw(wish).picture, facts)])
    return count(folder)


def count(folder: Path) -> str:
    """How many pictures of a folder are liked and disliked, in words.

    Raises:
        PictureListError: its metadata.jsonl cannot be read.
    """
    judged = [row.get("liked") for row in read_rows(folder)]
    return f"{judged.count(True)} liked, {judged.count(False)} disliked"


def as_zip(folder: Path) -> Path:
    """The folder in one file beside it, for somebody whose browser is on another machine."""
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.iterdir()):
            if not path.name.startswith("."):  # the lock of metadata.jsonl
                file.write(path, path.name)
    return archive
