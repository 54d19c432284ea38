"""Reading an adapter: find the folder, check everything, build it; or say every fault at once.

A source is the name of an adapter that ships with the package, a folder or file, or a repository on the Hub, in that
order. Nothing but safetensors and JSON is opened. Checkpoints without nft_config.json are read by the room foreign.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

import torch
from torch import Tensor

from ..checks import did_you_mean
from ..errors import AdapterError
from ..files.atomic import recover
from ..files.strict import read_plain_file, read_safetensors, tensor_faults
from ..models import ADAPTERS, shipped_adapter
from .alpha_head import AlphaHead, AlphaHeadConfig
from .config import AdapterConfig, parse_json
from .content import Adapter, head_faults, lora_faults
from .fetch import fetch
from .foreign.files import PICKLES, looks_foreign
from .names import (
    CONFIG_FILE,
    CONFIG_HEADER_KEY,
    HASH_HEADER_KEY,
    HEAD_CONFIG_FILE,
    HEAD_CONFIG_HEADER_KEY,
    HEAD_FILE,
    HEAD_FOLDER,
    LORA_FILE,
    LORA_METADATA_KEY,
    MAX_CONFIG_BYTES,
    MAX_HEAD_BYTES,
    MAX_LORA_BYTES,
)

MAX_HEAD_LAYERS = 64
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_READ_TRIES = 7
_FIRST_PAUSE = 0.05  # seconds, doubled from try to try, so that a writer at work has time to finish


def read_adapter(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    kind: str | None = None,
    beta: float | None = None,
    pipe: Any = None,
    use_old: bool = False,
    without_text_encoder: bool = False,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Adapter:
    """Read an adapter and check all of it.

    Args:
        source: name of a shipped adapter ("shapes-warm"), a folder, or a Hub id ("someone/sd35m-nft-ocr"). A plain
            name means the shipped adapter; write "./name" for a folder of that name. A path object is always a folder
            or a file. Somebody else's checkpoint may also be a single .safetensors file.
        revision: branch, tag or commit on the Hub; only with a Hub id.
        subfolder: folder inside the source that holds the adapter.
        kind, beta: for checkpoints that do not say so themselves (no nft_config.json), and only for those: "policy",
            and the beta of their training. See `nft_pipeline.adapters.foreign.adapter`: after online training,
            strengths other than 0 and 1 are heuristic.
        pipe: for those checkpoints, the pipeline they are for: names and shapes are checked against its denoiser.
        use_old: for those checkpoints, whether an adapter called "old" beside it is v_old, or (default) the base model.
        without_text_encoder: for those checkpoints, whether layers of text encoders are left out, with a warning that
            counts them, or (default) refused.
        token: for the Hub; None is the one that you are logged in with, False is none.
        cache_dir: where files of the Hub are kept; None is the client's own place.
        local_files_only: whether to take a Hub id from that place alone and ask no server.

    Returns:
        The adapter, on the CPU; the LoRA in the dtype it was saved in (in somebody else's checkpoint, a B that its
        scale was baked into is fp32), the head in fp32.

    Raises:
        AdapterError: the source cannot be found, or the adapter has faults; all of them are in the one error.
        FamilyError: `pipe` is one that this version cannot guide.
    """
    shown = f'the adapter "{os.fspath(source)}"'
    access: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    folder = locate(source, revision=revision, subfolder=subfolder, **access)
    for attempt in range(_READ_TRIES):
        if attempt:
            time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
        folder = recover(folder)
        before = _identity(folder)
        try:
            if is_foreign(folder):
                theirs = {"kind": kind, "beta": beta, "use_old": use_old, "without_text_encoder": without_text_encoder}
                adapter = _read_foreign(folder, source, pipe, theirs)
            else:
                refuse_for_own(shown, kind, beta)
                adapter = _read_folder(folder, shown)
        except AdapterError:
            if before is not None and _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return adapter
    raise AdapterError(f"the adapter {folder} is being written over and over while it is read; try again later")


def locate(
    source: str | os.PathLike[str], *, revision: str | None = None, subfolder: str | None = None, **access: Any
) -> Path:
    """The folder of an adapter on this machine, fetched from the Hub if need be; or the file, if it is somebody else's.

    Arguments as for `read_adapter`; `access` is its token, cache_dir and local_files_only.
    """
    inner = _inner_folder(subfolder)
    text = os.fspath(source)
    if not text or "\0" in text:
        raise AdapterError(f"the adapter's source is {text!r}, expected a shipped name, a folder or a Hub id")
    if isinstance(source, str) and "/" not in text and os.sep not in text:
        shipped = shipped_adapter(text)
        if shipped is not None:
            return _folder_inside(shipped, inner, revision)
    for _ in range(_READ_TRIES):  # a folder that is being replaced may step aside between the two lines
        path = recover(os.path.expanduser(text))
        if os.path.isdir(path):  # unlike Path.is_dir, False for names no disk would take
            return _folder_inside(path, inner, revision)
    if os.path.exists(path):
        if path.suffix == ".safetensors" or path.suffix in PICKLES:
            return _file_alone(path, inner, revision)
        raise AdapterError(
            f"{text} is a file, expected the adapter's folder or a .safetensors file",
            advice=f"Give the folder that holds {CONFIG_FILE}.",
        )
    if is_hub_id(source):
        return _folder_inside(fetch(source, revision, inner, access), inner, None)
    raise AdapterError(
        f'there is no adapter "{text}"' + did_you_mean(text, ADAPTERS, '; did you mean "{}"?'),
        [
            f"no folder {path.absolute()}",
            f'not the name of an adapter that ships with this package, and not a Hub id either: "{text}" is not of '
            'the form "owner/name"'
            if isinstance(source, str)
            else "a path object is not looked up on the Hub; give a text for that",
        ],
        f'Give a folder, a Hub id such as "someone/sd35m-nft-ocr", or a shipped name: {", ".join(ADAPTERS)}.',
    )


def is_hub_id(source: str | os.PathLike[str]) -> TypeGuard[str]:
    """Could this be a repository on the Hub, "owner/name"? A folder of that name here comes first, in `locate`."""
    return isinstance(source, str) and _HUB_ID.fullmatch(source) is not None and ".." not in source


def _inner_folder(subfolder: str | None) -> str:
    """The subfolder as a clean relative path, "" for none."""
    if subfolder is None:
        return ""
    parts = PurePosixPath(subfolder).parts
    if "\\" in subfolder or ":" in subfolder or subfolder.startswith(("/", "~")) or ".." in parts or not parts:
        raise AdapterError(f"subfolder is {subfolder!r}, expected a folder inside the source, such as 'adapters/warm'")
    return "/".join(parts)


def _folder_inside(folder: Path, inner: str, revision: str | None) -> Path:
    if revision is not None:
        raise AdapterError(
            f"revision is {revision!r} but {folder} is a folder on this machine; revisions are for the Hub"
        )
    if inner and not recover(folder / inner).is_dir():
        raise AdapterError(f"there is no folder {inner} in {folder}; found {_listing(folder)}")
    return folder / inner


def _file_alone(file: Path, inner: str, revision: str | None) -> Path:
    if inner or revision is not None:
        raise AdapterError(f"{file} is a file, which has neither a subfolder ({inner!r}) nor a revision ({revision!r})")
    return file


def _identity(folder: Path) -> tuple[int, int, int] | None:
    """Changes when a writer puts another folder under the same name."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return shown or "nothing"


def is_foreign(path: Path) -> bool:
    """Whether this is a checkpoint of another tool: it has LoRA files and none that only our adapters have."""
    return not (path / CONFIG_FILE).is_file() and not (path / HEAD_FOLDER).exists() and looks_foreign(path)


def _read_foreign(path: Path, source: str | os.PathLike[str], pipe: Any, theirs: Mapping[str, Any]) -> Adapter:
    from .foreign.adapter import denoiser_of, read_foreign

    component, denoiser = (None, None) if pipe is None else denoiser_of(pipe)
    text = os.fspath(source)
    name = None if os.path.exists(os.path.expanduser(text)) else text.rpartition("/")[2]  # of a repository on the Hub
    return read_foreign(path, denoiser=denoiser, component=component, pipe=pipe, name=name, **theirs)


def refuse_for_own(shown: str, kind: str | None, beta: float | None) -> None:
    """Raise if kind or beta is given for an adapter that has them in its config."""
    given = [f"{name}={value!r}" for name, value in (("kind", kind), ("beta", beta)) if value is not None]
    if given:
        raise AdapterError(
            f"{' and '.join(given)} was given for {shown}, which says its kind and beta itself, in its config",
            advice="Leave it out. To guide more or less strongly, give nft_strength or nft_beta to the call.",
        )


def _read_folder(folder: Path, shown: str) -> Adapter:
    where = f"{shown} in {folder}"
    if not (folder / CONFIG_FILE).is_file():
        raise AdapterError(
            f"{where} has no {CONFIG_FILE}; found {_listing(folder)}",
            advice=f"An adapter's folder holds {CONFIG_FILE} and {LORA_FILE}.",
        )
    faults: list[str] = []
    config = _collect(faults, lambda: AdapterConfig.from_json(_text(folder, CONFIG_FILE)))
    lora = _collect(
        faults,
        lambda: read_safetensors(
            folder / LORA_FILE, LORA_FILE, MAX_LORA_BYTES, HASH_HEADER_KEY, hashed_with=CONFIG_HEADER_KEY
        ),
    )
    if lora is not None and lora.hash_fault:
        faults.append(f"{LORA_FILE}: {lora.hash_fault}")
    head = _read_head(folder, faults) if (folder / HEAD_FOLDER).exists() else None
    if config is not None and lora is not None:
        found = _scale_faults(lora.header, config) + lora_faults(lora.tensors, config)
        faults += [f"{LORA_FILE}: {fault}" for fault in found]
    if config is not None and (head is not None or not (folder / HEAD_FOLDER).exists()):
        faults += head_faults(head, config)
    if faults or config is None or lora is None:
        raise AdapterError(f"{where} has faults", faults)
    return Adapter(config, lora.tensors, head)


def _text(folder: Path, name: str) -> bytes:
    return read_plain_file(folder / name, name, MAX_CONFIG_BYTES)


def _collect(faults: list[str], read: Any) -> Any:
    """What `read` returns; None if it raises, its faults added to the report."""
    try:
        return read()
    except AdapterError as error:
        faults.extend(error.faults or [str(error)])
    except OSError as error:
        faults.append(f"{error.filename}: cannot be read: {error.strerror or error}")
    return None


def _scale_faults(header: dict[str, str], config: AdapterConfig) -> list[str]:
    """Is the LoRA's scale baked in, and does the header say so to diffusers?"""
    if header.get("format") != "pt":
        return [f'the header\'s format is {header.get("format")!r}, expected "pt"']
    if LORA_METADATA_KEY not in header:
        return [f"the header has no {LORA_METADATA_KEY}: the LoRA's scale is not recorded, expected r and lora_alpha"]
    try:
        said = parse_json(header[LORA_METADATA_KEY], f"{LORA_METADATA_KEY} in the header")
    except AdapterError as error:
        return [str(error)]
    said = {key.removeprefix(f"{config.component}."): value for key, value in said.items()}
    rank, alpha = said.get("r"), said.get("lora_alpha")
    faults = []
    if rank != config.rank:
        faults.append(f"the header says r = {rank!r}, the config rank = {config.rank}")
    if alpha != rank:
        faults.append(
            f"lora_alpha is {alpha!r} and r is {rank!r}: the LoRA's scale is not baked into lora_B, expected "
            "lora_alpha == r; multiply lora_B by lora_alpha / r and set lora_alpha = r, as "
            "nft_pipeline.adapters.keys.lora_from_peft does"
        )
    for key in ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora"):
        if said.get(key):
            faults.append(f"the header sets {key} = {json.dumps(said[key])[:60]}, expected a plain LoRA without it")
    return faults


def _read_head(folder: Path, faults: list[str]) -> AlphaHead | None:
    """The head; None if it has faults, which are added to the report."""
    found: list[str] = []
    text = _collect(found, lambda: _text(folder, HEAD_CONFIG_FILE))
    config = None if text is None else _collect(found, lambda: _head_config(text, HEAD_CONFIG_FILE))
    file = _collect(found, lambda: read_safetensors(folder / HEAD_FILE, HEAD_FILE, MAX_HEAD_BYTES, HASH_HEADER_KEY))
    head = None
    if config is not None and file is not None:
        head = _collect(found, lambda: build_head(config, file.tensors, HEAD_FILE))
        own = file.header.get(HEAD_CONFIG_HEADER_KEY)  # the first files have neither this nor a hash
        if own is not None and _collect([], lambda: _head_config(own, HEAD_FILE)) != config:
            found.append(f"{HEAD_CONFIG_FILE} is another one than in the header of {HEAD_FILE}")
        if file.hash_fault:
            found.append(f"{HEAD_FILE}: {file.hash_fault}")
    faults += found
    return None if found else head


def build_head(config: AlphaHeadConfig, tensors: Mapping[str, Tensor], shown: str) -> AlphaHead:
    """The head with these numbers in it, in fp32, in eval mode and without gradients.

    Args:
        config: its sizes.
        tensors: its state dict.
        shown: how errors call the place the tensors came from.

    Raises:
        AdapterError: tensors missing, too many, of other shapes, or no numbers.
    """
    with torch.device("meta"):  # shapes only: an absurd config must not fill the memory
        expected = {key: tuple(tensor.shape) for key, tensor in AlphaHead(config).state_dict().items()}
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    faults = [f"{shown}: {key} is missing" for key in expected if key not in shapes]
    faults += [f"{shown}: {key} is unexpected" for key in shapes if key not in expected]
    faults += [
        f"{shown}: {key} has shape {shapes[key]}, expected {shape} from {HEAD_CONFIG_FILE}"
        for key, shape in expected.items()
        if key in shapes and shapes[key] != shape
    ]
    faults += [f"{shown}: {fault}" for fault in tensor_faults(dict(tensors))]
    if faults:
        raise AdapterError("the alpha head has faults", faults)
    with torch.random.fork_rng(devices=[]):  # reading must not move the caller's random numbers
        head = AlphaHead(config)
    head.load_state_dict({key: tensor.float() for key, tensor in tensors.items()}, assign=True)
    return head.eval().requires_grad_(False)


def _head_config(text: str | bytes, shown: str) -> AlphaHeadConfig:
    return head_config(parse_json(text, shown), shown)


def head_config(values: Mapping[str, Any], shown: str) -> AlphaHeadConfig:
    """The sizes of a head from parsed JSON that came from `shown`. Raises AdapterError for anything unsound."""
    try:
        config = AlphaHeadConfig.from_dict(values)
    except (ValueError, TypeError) as error:
        raise AdapterError(f"{shown}: {error}") from None
    if config.layers > MAX_HEAD_LAYERS:
        raise AdapterError(f"{shown}: layers is {config.layers}, expected at most {MAX_HEAD_LAYERS}")
    return config
