"""Finds the weights of a reward model, on the disk or on the Hub, and records which ones were used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..contract import RewardError


def locate_file(source: str, file: str) -> Path:
    """A weight file: `source` itself if it is a file, `file` in it if it is a folder or a Hub id.

    Raises:
        RewardError: it is not there, or the Hub cannot be reached and it was never downloaded.
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        if (path / file).is_file():
            return path / file
        raise RewardError(f"{path} has no {file}; expected the folder, or the file, of the reward's weights")
    return Path(from_hub(source, lambda: _download(source, file)))


def _download(source: str, file: str) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download(source, file)


def from_hub(source: str, load: Callable[[], Any]) -> Any:
    """What `load` returns; its error, if it finds nothing, as one that says what to do.

    Raises:
        RewardError: no such folder, file or repository, or no connection.
    """
    try:
        return load()
    except (OSError, ValueError) as error:  # what transformers and huggingface_hub raise for all of these
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RewardError(
            f"weights {source!r} cannot be loaded: {first}. Give the path of a folder that has them, or a Hub id "
            "while the network is there; a download is kept and needed once"
        ) from error


def pretrained(cls: Any, source: str, dtype: str) -> Any:
    """A transformers model whose every weight came from the file; frozen.

    Raises:
        RewardError: it cannot be loaded, or tensors are missing or of another shape (transformers makes those up).
    """
    kind = float_type(dtype)
    model, info = from_hub(source, lambda: cls.from_pretrained(source, dtype=kind, output_loading_info=True))
    missing = [*info["missing_keys"], *(entry[0] for entry in info.get("mismatched_keys", ()))]
    check_keys(missing, (), f"weights {source!r}")
    return model.eval().requires_grad_(False)


def float_type(name: str) -> torch.dtype:
    """The torch dtype of a name.

    Raises:
        RewardError: none that a reward is computed in.
    """
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise RewardError(f"dtype is {name!r}, expected one of {', '.join(known)}")
    return known[name]


def check_keys(missing: Sequence[str], unexpected: Sequence[str], what: str) -> None:
    """Raises a RewardError that names some of the tensors a file lacks, or has too many, if there are any."""
    faults = [
        f"{len(keys)} {kind} tensors, such as {', '.join(sorted(keys)[:3])}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ]
    if faults:
        raise RewardError(f"{what} do not fit: {' and '.join(faults)}. Scores would come from random weights")


def identity(source: str, commit: str | None = None) -> str:
    """Which weights these are, for the score cache: a Hub id with its commit; names, sizes and times of local files."""
    path = Path(source)
    if not path.exists():
        return f"{source}@{commit}"
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    facts = [f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
