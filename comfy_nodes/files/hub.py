"""An adapter from the Hub, kept in models/loras: fetched once, and found there ever after, also offline.

    models/loras/hub/someone--likes-warm/likes-warm.safetensors

huggingface_hub is not needed until something is fetched; ComfyUI has it, since transformers needs it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import tempfile
from pathlib import Path

from nft_pipeline.adapters.fetch import fetch
from nft_pipeline.adapters.foreign.files import PEFT_CONFIG, PEFT_WEIGHTS
from nft_pipeline.adapters.names import COMFYUI_FOLDER
from nft_pipeline.errors import AdapterError

ROOM = "hub"  # in models/loras
_ID = re.compile(r"[\w.-]+/[\w.-]+")
_REVISION = re.compile(r"[\w./-]*")
_ENDING = ".safetensors"


def keep_from_hub(loras: Path, repo: str, revision: str = "", file: str = "") -> Path:
    """The adapter's file in models/loras, fetched if it is not there.

    Args:
        loras: ComfyUI's folder of LoRAs.
        repo: "owner/name", also as the address of its page.
        revision: branch, tag or commit; "" is the repository's default.
        file: which of several files in the repository; "" is the one in its comfyui folder, or the only one it has.

    Raises:
        AdapterError: it cannot be had, or has several files and none was named.
    """
    repo = repo.strip().removeprefix("https://huggingface.co/").strip("/")
    if not _ID.fullmatch(repo) or not _REVISION.fullmatch(revision.strip()) or ".." in repo + revision + file:
        at = f" at {revision!r}" if revision else ""
        raise AdapterError(
            f'"{repo}"{at} is no repository of the Hub',
            advice='Type it as on its page: "owner/name"; and as revision a branch, tag or commit, or nothing.',
        )
    name = repo.replace("/", "--") + (f"@{revision.strip().replace('/', '--')}" if revision.strip() else "")
    place = loras / ROOM / name
    there = [path for path in sorted(place.glob(f"*{_ENDING}")) if not file or path.name == Path(file).name]
    return there[0] if there else _fetched(place, repo, revision.strip() or None, file.strip())


def _fetched(place: Path, repo: str, revision: str | None, file: str) -> Path:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise AdapterError(
            f'"{repo}" cannot be fetched: this Python has no huggingface_hub',
            advice=f"pip install huggingface_hub, or put the file into {place} yourself.",
        )
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place and not in the Hub's own cache, so that it is on the disk once.
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".fetching-") as cache:
            # Our repositories hold the adapter twice, and this is the half that is needed.
            inner = str(Path(file).parent) if file else COMFYUI_FOLDER
            source = _of(fetch(repo, revision, "" if inner == "." else inner, {"cache_dir": cache}), inner, file)
            if source is None and not file:
                source = _only_one(fetch(repo, revision, "", {"cache_dir": cache}), repo)
            if source is None:
                raise AdapterError(f'"{repo}" has no file {file}', advice="Look at its page for the file's name.")
            place.mkdir(exist_ok=True)
            config = source.with_name(PEFT_CONFIG)
            if source.name == PEFT_WEIGHTS and config.is_file():
                os.replace(config.resolve(), place / PEFT_CONFIG)
            os.replace(source.resolve(), place / source.name)
            return place / source.name
    except OSError as error:
        raise AdapterError(
            f'"{repo}" could not be kept in {place}: {error}', advice="Make room there, or allow writing."
        ) from error


def _of(snapshot: Path, inner: str, file: str) -> Path | None:
    """The file that was named, or the only one of the folder."""
    if file:
        path = snapshot / file
        return path if path.suffix == _ENDING and path.is_file() else None
    paths = list((snapshot / inner).glob(f"*{_ENDING}"))
    return paths[0] if len(paths) == 1 else None


def _only_one(snapshot: Path, repo: str) -> Path:
    paths = sorted(path for path in snapshot.rglob(f"*{_ENDING}"))
    if len(paths) != 1:
        names = ", ".join(str(path.relative_to(snapshot)) for path in paths[:8])
        raise AdapterError(
            f'"{repo}" has {len(paths) or "no"} safetensors files{f": {names}" if paths else ""}',
            advice="Type the name of the one you want into file." if paths else "It is no adapter, or holds pickles.",
        )
    return paths[0]
