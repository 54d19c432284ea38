"""Safetensors files, read strictly: whole, unharmed, and really safetensors.

The library's own errors name neither the file nor the remedy, and two common accidents (a torch.save file renamed, a
Git LFS pointer that was never fetched) look like a damaged header to it. Here each has its sentence.
Pickles are never opened: loading one runs code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import AdapterError

_DOWNLOAD_AGAIN = "download or write it again"


@dataclass(frozen=True)
class TensorFile:
    """What a safetensors file holds: its tensors, on the CPU, and the texts in its header."""

    tensors: dict[str, Tensor]
    header: dict[str, str]


def read_safetensors(path: Path, shown: str, max_bytes: int) -> TensorFile:
    """Read one file into memory, in one go, so that a writer who replaces it meanwhile does no harm.

    Args:
        path: the file.
        shown: how errors call it.
        max_bytes: refuse anything larger before reading it.

    Raises:
        AdapterError: missing, too large, a pickle, a Git LFS pointer, truncated or damaged.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise AdapterError(f"{shown} is {size:,} bytes long, expected at most {max_bytes:,}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise AdapterError(f"{shown} is missing") from None
    except OSError as error:
        raise AdapterError(f"{shown} cannot be read: {error.strerror or error}") from error
    header = _header(data, shown)
    try:
        # In the order of their names: safetensors gives them in another order each time, and reports should not differ.
        return TensorFile(dict(sorted(safetensors.torch.load(data).items())), header)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise AdapterError(f"{shown} is damaged ({error}); {_DOWNLOAD_AGAIN}") from error


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
        if not tensor.is_floating_point():
            faults.append(f"{key} has dtype {tensor.dtype}, expected floating point")
            continue
        bad = int((~torch.isfinite(tensor.float())).sum())
        if bad:
            faults.append(
                f"{key} holds {bad} of {tensor.numel()} numbers that are NaN or infinite; the training diverged"
            )
    return faults


def _header(data: bytes, shown: str) -> dict[str, str]:
    """The texts in the header, after checking that the file is as long as the header promises."""
    if data.startswith(b"version https://git-lfs"):
        raise AdapterError(f"{shown} is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository")
    if data.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")) and data[8:9] != b"{":
        raise AdapterError(
            f"{shown} is a pickle (a torch.save file under another name), which can run code and is never loaded; "
            "ask its author for safetensors"
        )
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise AdapterError(
            f"{shown} is truncated or no safetensors file: it has {len(data):,} bytes, its header asks for "
            f"{length + 8:,}; {_DOWNLOAD_AGAIN}"
        )
    try:
        header = json.loads(data[8 : 8 + length])
        texts = header.pop("__metadata__", {})
        promised = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        texts = {str(key): str(value) for key, value in texts.items()}
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise AdapterError(f"{shown} is damaged: its header is not readable ({error}); {_DOWNLOAD_AGAIN}") from None
    if len(data) != promised:
        raise AdapterError(
            f"{shown} is truncated or damaged: it has {len(data):,} bytes, its header promises {promised:,}; "
            f"{_DOWNLOAD_AGAIN}"
        )
    return texts
