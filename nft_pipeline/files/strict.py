"""Safetensors files, read strictly: whole, unharmed, and really safetensors.

The library's own errors name neither the file nor the remedy, and two common accidents (a torch.save file renamed, a
Git LFS pointer that was never fetched) look like a damaged header to it. Here each has its sentence.
Pickles are never opened: loading one runs code.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import AdapterError

_DOWNLOAD_AGAIN = "download or write it again"
MAX_TENSORS = 100_000  # a thousand times what a LoRA of the largest models has
_MAX_HEADER_BYTES = 100_000_000  # of safetensors itself
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)


@dataclass(frozen=True)
class TensorFile:
    """What a safetensors file holds.

    Args:
        tensors: on the CPU, in the order of their names.
        header: the texts in its header.
        hash_fault: a sentence if the tensors are not those that the hash in the header was computed of; None if they
            are, or if no hash was looked for.
    """

    tensors: dict[str, Tensor]
    header: dict[str, str]
    hash_fault: str | None = None


def read_plain_file(path: Path, shown: str, max_bytes: int) -> bytes:
    """The content of a file, after its kind and size have been checked: nothing waits for ever or fills the memory.

    Args:
        path: the file.
        shown: how errors call it.
        max_bytes: refuse anything larger before reading it.

    Raises:
        AdapterError: missing, no plain file (a pipe or a device), too large, or not readable.
    """
    try:
        with _opened(path, shown, max_bytes) as (file, size):
            return _whole(file, size, shown)
    except OSError as error:
        raise _unreadable(shown, error) from None


def read_safetensors(
    path: Path, shown: str, max_bytes: int, hash_key: str | None = None, hashed_with: str | None = None
) -> TensorFile:
    """Read one file into memory, in one go, so that a writer who replaces it meanwhile does no harm.

    Args:
        path: the file.
        shown: how errors call it.
        max_bytes: refuse anything larger before reading it.
        hash_key: the text of the header that holds the file's `content_hash`, to be compared; None compares nothing.
        hashed_with: compare only if the header has this text too. Other tools write hashes that mean something else.

    Raises:
        AdapterError: missing, no plain file, too large, a pickle, a Git LFS pointer, truncated or damaged.
    """
    try:
        with _opened(path, shown, max_bytes) as (file, size):
            header = _checked_header(file, size, shown)  # before the rest is read: the header says how long the file is
            file.seek(0)
            data = _whole(file, size, shown)
    except OSError as error:
        raise _unreadable(shown, error) from None
    hash_fault = None
    if hash_key in header and (hashed_with is None or hashed_with in header):
        promised = header[str(hash_key)]
        if content_hash(data) != promised:
            hash_fault = (
                f"its tensors have another hash than the {promised[:12]!r}... in its header: it was damaged or changed"
            )
    try:
        # In the order of their names: safetensors gives them in another order each time, and reports should not differ.
        return TensorFile(dict(sorted(safetensors.torch.load(data).items())), header, hash_fault)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise AdapterError(f"{shown} is damaged ({error}); {_DOWNLOAD_AGAIN}") from error


@contextlib.contextmanager
def _opened(path: Path, shown: str, max_bytes: int) -> Iterator[tuple[BinaryIO, int]]:
    """The file and its size, both checked."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait until somebody writes into it
        raise AdapterError(
            f"{shown} cannot be read: it is no plain file but a folder, a pipe or a device; put the file itself there"
        )
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size > max_bytes:
            raise AdapterError(f"{shown} is {status.st_size:,} bytes long, expected at most {max_bytes:,}")
        yield file, status.st_size


def _whole(file: BinaryIO, size: int, shown: str) -> bytes:
    try:
        data = file.read(size)
    except MemoryError:
        raise AdapterError(f"{shown} is {size:,} bytes long, more than fits into memory") from None
    if len(data) != size:
        raise AdapterError(f"{shown} became shorter while it was read; read it again when nobody writes it")
    return data


def _unreadable(shown: str, error: OSError) -> AdapterError:
    missing = isinstance(error, FileNotFoundError)
    return AdapterError(f"{shown} is missing" if missing else f"{shown} cannot be read: {error.strerror or error}")


def safetensors_bytes(tensors: dict[str, Tensor], header: dict[str, str], hash_key: str | None = None) -> bytes:
    """The content of a safetensors file, always the same for the same input.

    The library writes the header's texts in random order; equal adapters should be equal files, for hashes and the Hub.

    Args:
        tensors: on the CPU, contiguous, not sharing memory.
        header: texts for the header.
        hash_key: a further text of the header, for the `content_hash` of the file; None for none.
    """
    data = safetensors.torch.save(tensors)
    length = int.from_bytes(data[:8], "little")
    if hash_key is not None:
        header = {**header, hash_key: content_hash(data)}
    entries = {"__metadata__": dict(sorted(header.items())), **json.loads(data[8 : 8 + length])}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors stay aligned
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def content_hash(data: bytes) -> str:
    """ "0x" and the SHA-256 of what follows the header of a safetensors file: the tensors, whatever the header says."""
    length = int.from_bytes(data[:8], "little")
    return "0x" + hashlib.sha256(memoryview(data)[8 + length :]).hexdigest()


def tensor_faults(tensors: dict[str, Tensor]) -> list[str]:
    """One sentence for every tensor that is not floating point or holds NaN or infinity."""
    faults = []
    for key, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            faults.append(f"{key} has dtype {tensor.dtype}, expected floating point")
            continue
        numbers = tensor.float()
        # One pass and no second tensor: a sum is finite only if each of its terms is. Others may just be large.
        if math.isfinite(numbers.sum().item()):
            continue
        bad = int((~torch.isfinite(numbers)).sum())
        if bad:
            faults.append(
                f"{key} holds {bad} of {tensor.numel()} numbers that are NaN or infinite; the training diverged"
            )
    return faults


def read_beginning(path: Path) -> bytes:
    """A safetensors file up to the end of its header, for `header_texts`; no more than a header may have.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        length = file.read(8)
        return length + file.read(min(int.from_bytes(length, "little"), _MAX_HEADER_BYTES))


def header_texts(data: bytes, shown: str) -> dict[str, str]:
    """The texts in the header of a safetensors file, of which `data` is the content or the beginning.

    Raises:
        AdapterError: as `read_safetensors`, except for what is behind the header.
    """
    return _header(io.BytesIO(data), len(data), shown)[0]


def _checked_header(file: BinaryIO, size: int, shown: str) -> dict[str, str]:
    """The texts in the header, after checking that the file is as long as the header promises."""
    texts, promised = _header(file, size, shown)
    if size != promised:
        raise AdapterError(
            f"{shown} is truncated or damaged: it has {size:,} bytes, its header promises {promised:,}; "
            f"{_DOWNLOAD_AGAIN}"
        )
    return texts


def _header(file: BinaryIO, size: int, shown: str) -> tuple[dict[str, str], int]:
    """The texts in the header, and how long the file is by what it says."""
    data = file.read(64)
    if data.startswith(b"version https://git-lfs"):
        raise AdapterError(f"{shown} is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository")
    if data.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")) and data[8:9] != b"{":
        raise AdapterError(
            f"{shown} is a pickle (a torch.save file under another name), which can run code and is never loaded; "
            "ask its author for safetensors"
        )
    length = int.from_bytes(data[:8], "little")
    if size < 8 or length > size - 8:
        raise AdapterError(
            f"{shown} is truncated or no safetensors file: it has {size:,} bytes, its header asks for "
            f"{length + 8:,}; {_DOWNLOAD_AGAIN}"
        )
    if length > _MAX_HEADER_BYTES:
        raise AdapterError(f"{shown} has a header of {length:,} bytes, expected at most {_MAX_HEADER_BYTES:,}")
    file.seek(8)
    try:
        header = json.loads(file.read(length))
        texts = header.pop("__metadata__", {})
        promised = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        texts = {str(key): str(value) for key, value in texts.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{shown} is damaged: its header is not readable ({error}); {_DOWNLOAD_AGAIN}") from None
    if len(header) > MAX_TENSORS:
        raise AdapterError(f"{shown} has {len(header):,} tensors, expected at most {MAX_TENSORS:,}")
    return texts, promised
