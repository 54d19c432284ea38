"""The parts of a pool that is being made: every batch is on disk as soon as it is there, and nothing is made twice.

A part is one small file with the rows it holds, their latents and, once rewards have been asked, their scores. Where
the run is stopped, or a reward fails, the next start goes on behind the last part. They go once the pool is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nft_pipeline.errors import AdapterError
from nft_pipeline.files.atomic import atomic_write_bytes
from nft_pipeline.files.strict import header_texts, read_beginning, read_safetensors, safetensors_bytes

HASH_KEY = "sha256"


class Parts:
    """Parts in a folder of their own.

    Args:
        folder: made when the first part is kept.
        key: all that a part depends on; parts with another one are not looked at.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key

    def kept(self) -> list[dict[str, Tensor]]:
        """Every part that is whole and of this key, in the order of their first rows."""
        found = []
        for path in sorted(self._folder.glob("*.safetensors")):
            try:
                if header_texts(read_beginning(path), path.name).get("key") != self._key:
                    continue
                file = read_safetensors(path, path.name, path.stat().st_size, HASH_KEY)
            except (AdapterError, OSError):
                continue  # it is made again, in its place
            if not file.hash_fault:
                found.append(dict(file.tensors))
        return found

    def keep(self, part: Mapping[str, Tensor]) -> None:
        """Write a part; "rows" among its tensors names it, and replaces an earlier one of the same first row."""
        self._folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.contiguous() for name, value in part.items()}
        name = f"{int(part['rows'][0]):08d}.safetensors"
        atomic_write_bytes(self._folder / name, safetensors_bytes(tensors, {"key": self._key}, HASH_KEY))

    def clear(self) -> None:
        """Delete them."""
        shutil.rmtree(self._folder, ignore_errors=True)
