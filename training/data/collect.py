"""A dataset turned into a folder of pictures with metadata.jsonl, which is what training, `score` and `rate` read.

Datasets are read by Hugging Face's `datasets`, row after row: from the Hub, saved to disk, webdataset shards, parquet
files, or a folder of pictures in its own layout. Pictures are written as PNG, so that nothing of them is lost.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from nft_pipeline.files.atomic import atomic_folder
from nft_pipeline.files.picture_list import METADATA, rows_as_bytes

from .folder import DataError

# How the name of files ends, the query of a URL aside; anything else is a folder or a Hub id.
BUILDERS = {re.compile(r"\.(tar|tar\.gz|tgz)(\?|$)"): "webdataset", re.compile(r"\.parquet(\?|$)"): "parquet"}
PASSED_ON = ("seed", "guidance_scale")


@dataclass(frozen=True)
class Columns:
    """The columns that are read; a column that is None is found by its name.

    Args:
        image: by default the first column that holds pictures.
        prompt: "prompt", "text", "caption" or "txt".
        score: "score", any number.
        liked: "liked", true, false, 1 or 0.
    """

    image: str | None = None
    prompt: str | None = None
    score: str | None = None
    liked: str | None = None


_NAMES = {"prompt": ("prompt", "text", "caption", "txt"), "score": ("score",), "liked": ("liked",)}


def collect(
    source: str,
    folder: Path,
    *,
    split: str = "train",
    revision: str | None = None,
    columns: Columns = Columns(),
    limit: int | None = None,
) -> tuple[int, int]:
    """Write `folder`, whole or not at all.

    Args:
        source: a Hub id, a folder, or .tar or .parquet files (a pattern or a URL will do).
        split: the split of the dataset.
        revision: the revision of a Hub dataset.
        columns: which column holds what; fields of a webdataset's "json" count as columns.
        limit: how many rows to read, None for all.

    Returns:
        (pictures written, rows left out because they have no picture or no prompt).

    Raises:
        DataError: the folder holds something, the dataset cannot be read, a column is missing, or a value does
            not fit its column.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} holds something already; choose a folder that does not exist yet")
    rows = islice(_rows(source, split, revision), limit)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source} has no rows in split {split!r}")
    found = _find_columns(first, columns, source)
    written: list[dict[str, Any]] = []
    left_out = 0
    with atomic_folder(folder) as work:
        for row in tqdm(chain([first], rows), desc="collecting", unit="picture"):
            picture, line = row.get(found.image or ""), _line(row, found, len(written) + left_out + 1)
            if not isinstance(picture, Image.Image) or line is None:
                left_out += 1
                continue
            name = f"{len(written):06d}.png"
            picture.convert("RGB").save(work / name)
            written.append({"image": name, **line})
        if not written:
            raise DataError(f"none of the {left_out} rows of {source} has both a picture and a prompt")
        (work / METADATA).write_bytes(rows_as_bytes(written))
    return len(written), left_out


def _rows(source: str, split: str, revision: str | None) -> Iterator[dict[str, Any]]:
    """The dataset's rows; what a webdataset keeps in "json" stands beside the other columns."""
    import datasets

    path = Path(source)
    try:
        if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(source)
            loaded: Iterable[Any] = saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            builder = next((name for ending, name in BUILDERS.items() if ending.search(source)), None)
            kind = {"path": source, "revision": revision} if builder is None else {"path": builder}
            files = {} if builder is None else {"data_files": {split: source}}
            loaded = datasets.load_dataset(**kind, **files, split=split, streaming=True)
        for row in loaded:
            inner = row.get("json")
            yield {**inner, **row} if isinstance(inner, Mapping) else dict(row)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        said = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f"the dataset {source}, split {split!r}, cannot be read: {said}") from error


def _find_columns(row: Mapping[str, Any], wanted: Columns, source: str) -> Columns:
    """The names of the columns in use, by the first row."""
    there = ", ".join(map(str, row))
    for entry in fields(Columns):
        name = getattr(wanted, entry.name)
        if name is not None and name not in row:
            raise DataError(f"{source} has no column {name!r} for {entry.name}; its columns are {there}")
    found = asdict(wanted)
    found["image"] = wanted.image or next((name for name, v in row.items() if isinstance(v, Image.Image)), None)
    for what, names in _NAMES.items():
        found[what] = found[what] or next((name for name in names if name in row), None)
    for what in ("image", "prompt"):
        if found[what] is None:
            raise DataError(
                f"{source} has no column that is surely the {what}; name it with --{what}. Its columns are {there}"
            )
    if wanted.score is None and wanted.liked is not None:
        found["score"] = None
    elif found["score"] is not None:
        found["liked"] = wanted.liked
    if found["score"] is not None and found["liked"] is not None:
        raise DataError("a score and a like cannot both be learned from; name one of the columns")
    return Columns(**found)


def _line(row: Mapping[str, Any], columns: Columns, number: int) -> dict[str, Any] | None:
    """The line of metadata.jsonl for a picture, without the picture's name; None if there is no prompt."""
    prompt = row.get(columns.prompt or "")
    prompt = prompt.decode() if isinstance(prompt, bytes) else prompt
    if not isinstance(prompt, str) or not prompt.strip():
        return None
    line: dict[str, Any] = {"prompt": prompt.strip()}
    score, liked = row.get(columns.score or ""), row.get(columns.liked or "")
    if score is not None:
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise DataError(f"row {number}: {columns.score} is {score!r}, expected a number")
        if math.isfinite(score):
            line["score"] = score
    if liked is not None:
        if liked not in (0, 1):
            raise DataError(f"row {number}: {columns.liked} is {liked!r}, expected true, false, 1 or 0")
        line["liked"] = bool(liked)
    return line | {name: row[name] for name in PASSED_ON if isinstance(row.get(name), int | float)}
