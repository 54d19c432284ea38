"""A dataset turned into a folder of pictures with metadata.jsonl, which is what training, `score` and `rate` read.

Datasets are read by Hugging Face's `datasets`, row after row: from the Hub, saved to disk, webdataset shards, parquet
files, or a folder of pictures in its own layout. Pictures are written as PNG, so that nothing of them is lost.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from glob import glob
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from nft_pipeline.checks import number, shown
from nft_pipeline.files.atomic import atomic_folder
from nft_pipeline.files.picture_list import METADATA, rows_as_bytes
from nft_pipeline.files.pictures import as_seen, read_picture

from .folder import SHOWN_FAULTS, DataError

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
    say: Callable[[str], None] = print,
) -> tuple[int, int]:
    """Write `folder`, whole or not at all. A row that cannot be used is left out, and said with its number.

    Args:
        source: a Hub id, a folder, or .tar or .parquet files (a pattern or a URL will do).
        split: the split of the dataset.
        revision: the revision of a Hub dataset.
        columns: which column holds what; fields of a webdataset's "json" count as columns.
        limit: how many rows to read, None for all.
        say: called with a line for each of the first rows that are left out.

    Returns:
        (pictures written, rows left out).

    Raises:
        DataError: the folder holds something, the dataset cannot be read or is cut off, a column is missing, or no row
            can be used.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} holds something already; choose a folder that does not exist yet")
    _refuse_cut_off(source)
    rows = islice(_rows(source, split, revision), limit)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source} has no rows in split {split!r}")
    found = _find_columns(first, columns, source)
    written: list[dict[str, Any]] = []
    faults: list[str] = []
    with atomic_folder(folder) as work:
        for place, row in enumerate(tqdm(chain([first], rows), desc="collecting", unit="picture"), start=1):
            try:
                line, picture = _line(row, found), _picture(row.get(found.image or ""))
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                faults.append(f"row {place}: {error}")
                continue
            name = f"{len(written):06d}.png"
            picture.save(work / name)
            written.append({"image": name, **line})
        lines = [f"{fault}; it is left out" for fault in faults[:SHOWN_FAULTS]]
        lines += [f"and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
        if not written:
            raise DataError("\n  ".join([f"none of the {len(faults)} rows of {source} can be used:", *lines]))
        (work / METADATA).write_bytes(rows_as_bytes(written))
    for sentence in lines:
        say(sentence)
    return len(written), len(faults)


def _refuse_cut_off(source: str) -> None:
    """Raise for a .tar on this machine that ends before its end: what reads it would take it for a shorter one."""
    for path in sorted(glob(source)) if source.endswith((".tar", ".tar.gz", ".tgz")) else []:
        try:
            with tarfile.open(path) as tar:
                for _ in tar:  # reads headers only
                    pass
                end, file = tar.offset, tar.fileobj
                assert file is not None
                file.seek(end)
                is_whole = len(file.read(tarfile.BLOCKSIZE)) == tarfile.BLOCKSIZE
        except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
            raise DataError(f"{path} cannot be read as a tar file: {error}; download or write it again") from error
        if not is_whole:
            raise DataError(f"{path} is cut off: it ends after {end:,} bytes; download or write it again")


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
        for row in _undecoded(loaded):
            inner = row.get("json")
            yield {**inner, **row} if isinstance(inner, Mapping) else dict(row)
    except (OSError, ValueError, KeyError, TypeError, EOFError, ArithmeticError, RuntimeError, IndexError) as error:
        said = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(f"the dataset {source}, split {split!r}, cannot be read: {said}") from error


def _undecoded(loaded: Any) -> Iterable[Mapping[str, Any]]:
    """The rows with pictures as files, so that one that cannot be read is one row's fault, not the end of all."""
    import datasets

    if isinstance(loaded, datasets.IterableDataset):
        return loaded.decode(False)
    for name, feature in loaded.features.items():
        if isinstance(feature, datasets.Image):
            loaded = loaded.cast_column(name, datasets.Image(decode=False))
    return loaded


def _holds_picture(value: Any) -> bool:
    return isinstance(value, Image.Image) or (isinstance(value, Mapping) and value.keys() == {"bytes", "path"})


def _picture(value: Any) -> Image.Image:
    """The picture in a column.

    Raises:
        OSError, ValueError: there is none, or it cannot be read.
    """
    if isinstance(value, Image.Image):
        return as_seen(value)
    if not _holds_picture(value):
        raise ValueError("it has no picture")
    try:
        return read_picture(BytesIO(value["bytes"]) if value["bytes"] is not None else str(value["path"]))
    except UnidentifiedImageError:
        raise ValueError("its picture cannot be read: it is damaged, or of another format") from None


def _find_columns(row: Mapping[str, Any], wanted: Columns, source: str) -> Columns:
    """The names of the columns in use, by the first row."""
    there = ", ".join(map(str, row))
    for entry in fields(Columns):
        name = getattr(wanted, entry.name)
        if name is not None and name not in row:
            raise DataError(f"{source} has no column {name!r} for {entry.name}; its columns are {there}")
    found = asdict(wanted)
    found["image"] = wanted.image or next((name for name, v in row.items() if _holds_picture(v)), None)
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


def _line(row: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """The line of metadata.jsonl for a picture, without the picture's name.

    Raises:
        ValueError: there is no prompt, or a value does not fit its column.
    """
    prompt = row.get(columns.prompt or "")
    prompt = prompt.decode() if isinstance(prompt, bytes) else prompt
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError("it has no prompt")
    line: dict[str, Any] = {"prompt": prompt.strip()}
    score, liked = row.get(columns.score or ""), row.get(columns.liked or "")
    if score is not None:
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise ValueError(f"{columns.score} is {shown(score)}, expected a number")
        if number().holds(score):
            line["score"] = score
    if liked is not None:
        if liked not in (0, 1):
            raise ValueError(f"{columns.liked} is {shown(liked)}, expected true, false, 1 or 0")
        line["liked"] = bool(liked)
    return line | {name: row[name] for name in PASSED_ON if number().holds(row.get(name))}
