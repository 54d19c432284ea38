"""metadata.jsonl: pictures in a folder with their prompts and scores. What `score` and `rate` write, training reads.

One JSON object a line:

    {"image": "0001.png", "prompt": "a red ring", "score": 0.82, "scores": {"ocr": 1.0, "pickscore": 21.3}}
    {"image": "sub/0002.png", "prompt": "a red ring", "liked": false, "seed": 7}

`image` is relative to the folder, with forward slashes. `score` is r in [0, 1], `liked` true or false; `seed`,
`guidance_scale`, `model` and anything else a line has is kept as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from nft_pipeline.files.atomic import atomic_write_bytes
from nft_pipeline.files.ratings_lock import METADATA, ratings_lock

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class ScoresError(ValueError):
    """A folder of pictures, or its metadata.jsonl, that cannot be used."""


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """The lines of the folder's metadata.jsonl; an empty list if there is no such file.

    Raises:
        ScoresError: a line is no JSON object, has no `image` or one outside the folder, a picture comes twice, or
            `liked` or `score` is of another type; the first ten faults are named with their line.
    """
    path = folder / METADATA
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    faults: list[str] = []
    seen: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ScoresError(f"{path} is not UTF-8 text: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fault, row = _parsed(line)
        if not fault:
            first = seen.setdefault(row["image"], number)
            fault = f"{row['image']!r} stands in line {first} already" if first != number else ""
        if fault:
            faults.append(f"  line {number}: {fault}")
        rows.append(row)
    if faults:
        more = f"\n  and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise ScoresError(f"{path} has {len(faults)} bad lines; mend or delete them:\n" + "\n".join(faults[:10]) + more)
    return rows


def _parsed(line: str) -> tuple[str, dict[str, Any]]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return f"no JSON ({error.msg} at column {error.colno})", {}
    if not isinstance(row, dict):
        return f"{type(row).__name__}, expected an object", {}
    image = row.get("image")
    if not isinstance(image, str) or not image:
        return f"image is {image!r}, expected a path", row
    if PurePosixPath(image).is_absolute() or ".." in PurePosixPath(image).parts or "\\" in image:
        return f"image is {image!r}, expected a path inside the folder, with forward slashes", row
    if "liked" in row and not isinstance(row["liked"], bool):
        return f"liked is {row['liked']!r}, expected true or false", row
    if "score" in row and (isinstance(row["score"], bool) or not isinstance(row["score"], int | float)):
        return f"score is {row['score']!r}, expected a number", row
    return "", row


def update_scores(folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Merge `changes`, by image, into the folder's metadata.jsonl: in one step, and safely beside another writer.

    A value of None removes the key; an image without a line gets one at the end. Nothing else is touched.

    Raises:
        ScoresError: the file there cannot be read; it is left as it is.
        OSError: the disk is full, ...; the old file is then still there, untouched.
    """
    with ratings_lock(folder):
        rows = {row["image"]: row for row in read_scores(folder)}
        for image, change in changes.items():
            row = {"image": image, **rows.get(image, {}), **change}
            rows[image] = {key: value for key, value in row.items() if value is not None}
        lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows.values())
        atomic_write_bytes(folder / METADATA, "".join(lines).encode())


def find_pictures(folder: Path) -> list[str]:
    """Every picture in the folder and below it, relative paths with forward slashes, sorted; hidden ones left out.

    Raises:
        ScoresError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise ScoresError(f"{folder} is not a folder; expected one with pictures")
    found = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise ScoresError(f"{folder} has no pictures; expected files ending in {', '.join(sorted(PICTURES))}")
    return found
