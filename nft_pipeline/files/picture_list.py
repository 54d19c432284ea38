"""metadata.jsonl, the list in a folder of pictures: prompts, scores and likes, one JSON object per line.

    {"image": "0001.png", "prompt": "a red ring", "score": 0.82, "scores": {"ocr": 1.0, "pickscore": 21.3}}
    {"image": "sub/0002.png", "prompt": "a red ring", "liked": false, "seed": 7}

`image` is relative to the folder, with forward slashes. `score` is a finite number, `liked` true or false; `seed`,
`guidance_scale`, `model` and anything else a line has is kept as it is. A line with a `strength` that is not 0 is of a
picture that an adapter guided. `chosen_by` names the adapter by which a rated picture was chosen (`rate --by`), or by
which others were chosen before it: such ratings are no fair sample.

The commands `score`, `rate`, `collect` and `play` and ComfyUI's node Rate Images write it; they and the trainer read
it. All of them do so by this module, so that what one of them writes is what the others read. There are two readers:

- `read_lines` checks each line by itself. The trainer uses it, adds checks of its own, and changes nothing.
- `read_rows` also refuses a picture that comes twice or lies outside the folder. All others use it, because they find
  a row by its picture and write the list anew. So a list with such lines, which only a person writes, can be trained on
  but not rated.

Lines end at newline characters and nowhere else: a prompt may hold a character such as U+2028, which Python's
`splitlines` takes for the end of a line.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ..checks import Check, flag, number, shown, text, value_faults
from .atomic import atomic_write_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

METADATA = "metadata.jsonl"
CHOSEN_BY = "chosen_by"
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
SHOWN_FAULTS = 10
_CHECKS = {
    "image": Check(text().holds, "a path inside the folder, with forward slashes"),
    "score": Check(number(-sys.float_info.max, sys.float_info.max).holds, "a finite number"),
    "liked": flag(),
}

Row = dict[str, Any]


class PictureListError(ValueError):
    """A folder of pictures, or its metadata.jsonl, that cannot be used.

    Attributes:
        faults: a sentence for each bad line, which begins with "line" and its number; empty if the fault is no line's.
    """

    def __init__(self, message: str, faults: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.faults = faults


@dataclass(frozen=True)
class Line:
    """A line that is not blank.

    Args:
        number: counted from 1, blank lines included.
        row: what it holds; empty where that is no JSON object.
        faults: a sentence for each fault, which begins with "line" and the number.
    """

    number: int
    row: Row
    faults: tuple[str, ...]


def read_lines(folder: Path) -> list[Line]:
    """The lines of the folder's metadata.jsonl, each checked by itself; none if there is no such file.

    A line is a JSON object whose `image` is a text and whose `score` and `liked`, if it has them, are of their types.
    A byte order mark, which some editors put at the beginning of a file, is skipped.

    Raises:
        PictureListError: the file is not UTF-8 text.
    """
    path = folder / METADATA
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise PictureListError(f"{path} is not UTF-8 text: {error}") from error
    return [_parse(i, line) for i, line in enumerate(lines, start=1) if line.strip()]


def _parse(number: int, line: str) -> Line:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Line(number, {}, (f"line {number} is no JSON: {error}",))
    if not isinstance(row, dict):
        return Line(number, {}, (f"line {number}: it holds {type(row).__name__}, expected an object",))
    return Line(number, row, tuple(value_faults({"image": None, **row}, _CHECKS, f"line {number}: ")))


def read_rows(folder: Path) -> list[Row]:
    """What the folder's metadata.jsonl says of its pictures, one row per picture; none if there is no such file.

    Raises:
        PictureListError: the file is not UTF-8 text, a line has a fault (see `read_lines`), its picture is outside the
            folder, or a picture comes twice; the message has the first ten faults, the error's `faults` all of them.
    """
    faults: list[str] = []
    first_line: dict[str, int] = {}
    lines = read_lines(folder)
    for line in lines:
        faults += line.faults
        if line.faults:
            continue
        image = line.row["image"]
        if PurePosixPath(image).is_absolute() or ".." in PurePosixPath(image).parts or "\\" in image:
            faults.append(f"line {line.number}: image is {shown(image)}, expected {_CHECKS['image'].expected}")
        elif (first := first_line.setdefault(image, line.number)) != line.number:
            faults.append(f"line {line.number}: {image!r} stands in line {first} already")
    if faults:
        more = f"\n  and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        first_faults = "\n".join(f"  {fault}" for fault in faults[:SHOWN_FAULTS])
        summary = f"{folder / METADATA} has {len(faults)} bad lines; mend or delete them:"
        raise PictureListError(f"{summary}\n{first_faults}{more}", tuple(faults))
    return [line.row for line in lines]


def drawn_by(row: Mapping[str, Any]) -> str | None:
    """The model that drew a row's picture by itself; None where the row names none, or an adapter guided it."""
    model = row.get("model")
    return model if isinstance(model, str) and not row.get("strength") else None


def rows_as_bytes(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The content of a metadata.jsonl with these rows, for a folder that is still being made; see `changing_rows`.

    Raises:
        ValueError: a value that JSON has no word for, such as NaN.
    """
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()


@contextlib.contextmanager
def ratings_lock(folder: Path) -> Iterator[None]:
    """Wait until nobody else changes the folder's metadata.jsonl, and keep others waiting inside the block.

    The trainer's tools and ComfyUI's nodes may have the folder open at once.

    Args:
        folder: made when missing.

    Raises:
        OSError: the folder cannot be made or written.
    """
    from filelock import FileLock  # comes with huggingface_hub, hence with ComfyUI as well

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{METADATA}.lock"):
        yield


@contextlib.contextmanager
def changing_rows(folder: Path) -> Iterator[dict[str, Row]]:
    """The rows by picture, to be changed in place, and written in one step when the block ends without an error.

    Other writers wait meanwhile. If anything fails, the old file is still there, untouched.

    Args:
        folder: made when missing.

    Raises:
        PictureListError: as `read_rows`; the block does not begin.
        ValueError: as `rows_as_bytes`.
        OSError: the disk is full, or the folder cannot be written.
    """
    with ratings_lock(folder):
        rows = {row["image"]: row for row in read_rows(folder)}
        yield rows
        atomic_write_bytes(folder / METADATA, rows_as_bytes(rows.values()))


def update_rows(folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Merge `changes`, by picture, into the folder's metadata.jsonl: in one step, and safely beside another writer.

    A value of None removes the key; a picture without a line gets one at the end. Nothing else is touched.

    Raises:
        PictureListError: the file there cannot be read; it is left as it is.
        OSError: the disk is full, ...; the old file is then still there, untouched.
    """
    with changing_rows(folder) as rows:
        for image, change in changes.items():
            row = {"image": image, **rows.get(image, {}), **change}
            rows[image] = {key: value for key, value in row.items() if value is not None}


def picture_name(picture: Image) -> str:
    """The name that `add_pictures` gives a picture's file: by its content."""
    return hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()[:24] + ".png"


def add_pictures(folder: Path, pictures: Iterable[tuple[Image, Mapping[str, Any]]]) -> list[str]:
    """Save pictures as PNG files, each with a line of facts.

    A file is called by the picture's content, so adding a picture again replaces its line.

    Args:
        folder: made when missing.
        pictures: each with what its line holds beside `image`, such as prompt, liked and seed. They are saved as 8-bit
            RGB.

    Returns:
        The names of the files.

    Raises:
        PictureListError, ValueError, OSError: as `changing_rows`; the list is as it was.
    """
    names = []
    with changing_rows(folder) as rows:
        for picture, facts in pictures:
            name = picture_name(picture)
            file = io.BytesIO()
            picture.convert("RGB").save(file, "PNG")
            atomic_write_bytes(folder / name, file.getvalue())
            rows[name] = {"image": name, **facts}
            names.append(name)
    return names


def find_pictures(folder: Path) -> list[str]:
    """Every picture in the folder and below it, relative paths with forward slashes, sorted; hidden ones left out.

    Raises:
        PictureListError: there is no such folder, no picture in it, or one whose name is not UTF-8.
    """
    if not folder.is_dir():
        raise PictureListError(f"{folder} is not a folder; expected one with pictures")
    pictures = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not pictures:
        raise PictureListError(f"{folder} has no pictures; expected files ending in {', '.join(sorted(PICTURES))}")
    odd = [name for name in pictures if not _is_utf8(name)]
    if odd:
        names = ", ".join(name.encode("utf-8", "backslashreplace").decode() for name in odd[:SHOWN_FAULTS])
        raise PictureListError(
            f"{folder} has {len(odd)} pictures whose names are not UTF-8, which {METADATA} cannot hold: {names}. "
            "Rename them"
        )
    return pictures


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
