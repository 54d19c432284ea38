"""Everything that can be wrong with an adapter's folder or repository, each in one line that says what to do.

    for fault in verify("someone/sd35m-nft-ocr"):
        print(fault)

`read_adapter` refuses what cannot be used. This goes further and checks whether an adapter may be given to others: the
two LoRA files agree, hashes hold, the card names a licence and the base model, nothing private is in it, and every file
in the folder is part of an adapter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nft_pipeline.adapter import Adapter, AdapterError, check_base, check_lora_modules, read_adapter
from nft_pipeline.adapters.config import UNKNOWN
from nft_pipeline.adapters.fetch import is_network_error
from nft_pipeline.adapters.names import (
    COMFYUI_FOLDER,
    CONFIG_FILE,
    CONFIG_HEADER_KEY,
    HEAD_CONFIG_FILE,
    HEAD_FOLDER,
    HEAD_PREFIX,
    LORA_FILE,
    comfyui_file,
)
from nft_pipeline.adapters.read import is_hub_id, locate
from nft_pipeline.adapters.single_file import read_single_file
from nft_pipeline.families.registry import unwrap_compiled
from nft_pipeline.files.strict import header_texts

from .card import CARD_FILE
from .contents import MAX_PIXELS, MAX_TEXT_BYTES, folder_sizes, listing_faults, png_pixels, read_texts
from .hub import explain
from .report import REPORT_FILE, RunReport
from .scan import private_faults

# Of a positive adapter: e^20 is half a billion, and no reward model is right that often. A policy's tilt says how far
# its training went and moves nothing: strength 1 is the trained model, whatever the tilt.
MAX_TILT = 20.0
_AGAIN = "write the adapter again with write_adapter, or download it again"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Args:
        where: the file, by its path in the folder.
        what: what is wrong, with the value seen and what was expected.
        advice: what to do.
    """

    where: str
    what: str
    advice: str

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}; {self.advice}"
        line = " ".join(line.split("\n"))
        return line.encode("utf-8", "backslashreplace").decode()  # a file's name may hold what no terminal can print


def verify(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    base: Any = None,
    card: bool = True,
) -> list[Fault]:
    """Check an adapter against its contract.

    Args:
        source: a shipped name, a folder or a Hub id.
        revision: branch, tag or commit, for a Hub id.
        subfolder: folder inside the source.
        base: the base model's denoiser; if given, names and shapes of the LoRA and the head are checked against it.
        card: whether it is a fault that the card or the file for ComfyUI is missing; False for a folder that `push` has
            yet to complete with them.

    Returns:
        Every fault; an empty list for a sound adapter.

    Raises:
        AdapterError: the source itself cannot be found or fetched.
    """
    folder = locate(source, revision=revision, subfolder=subfolder)
    if not folder.is_dir():
        raise AdapterError(f"{folder} is a file, expected an adapter's folder or a Hub id")
    from_hub = is_hub_id(source) and not Path(os.path.expanduser(source)).is_dir()
    sizes = repository_sizes(str(source), revision, subfolder) if from_hub else None
    owner = str(source).partition("/")[0] if from_hub else None
    return folder_faults(folder, sizes=sizes, from_hub=from_hub, base=base, card=card, owner=owner)


def folder_faults(
    folder: Path,
    *,
    sizes: Mapping[str, int] | None = None,
    from_hub: bool = False,
    base: Any = None,
    card: bool = True,
    owner: str | None = None,
) -> list[Fault]:
    """The faults of a folder on this machine; if only part was fetched, `sizes` also lists the files left out."""
    try:
        return _all_faults(folder, sizes, from_hub, base, card, owner)
    except OSError as error:  # one file is enough: what cannot be read cannot be judged
        name = os.path.relpath(str(error.filename), folder) if error.filename else str(folder)
        return [Fault(name, f"cannot be read: {error.strerror or error}", "mend its permissions, or delete it")]


def _all_faults(
    folder: Path, sizes: Mapping[str, int] | None, from_hub: bool, base: Any, card: bool, owner: str | None
) -> list[Fault]:
    listed = dict(folder_sizes(folder) if sizes is None else sizes)
    faults = [Fault(*fault) for fault in listing_faults(listed)]
    if not from_hub:
        faults += _link_faults(folder)
    files = read_texts(folder, folder_sizes(folder), tensors=False)
    adapter: Adapter | None = None
    try:
        adapter = read_adapter(folder)
    except AdapterError as error:
        faults += [_read_fault(fault, folder) for fault in error.faults or [error.what]]
    faults += _header_faults(folder, files)
    if adapter is not None:
        faults += _config_faults(adapter)
        faults += _comfyui_faults(folder, adapter, card)
        if base is not None:
            faults += _base_faults(adapter, base)
    faults += _report_faults(files)
    faults += _card_faults(files, adapter, card)
    advice = "take it out of the run's settings or texts, and write the adapter again"
    faults += [Fault(where, what, advice) for where, what in private_faults(files, owner)]
    return list(dict.fromkeys(faults))


def repository_sizes(repo: str, revision: str | None, subfolder: str | None) -> dict[str, int] | None:
    """Bytes of every file of a repository on the Hub, by path relative to the subfolder; None if it is out of reach.

    Raises:
        HubError: the Hub answered with an error.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    except Exception as error:
        if isinstance(error, OfflineModeIsEnabled) or is_network_error(error):
            return None  # what lies in the cache is looked at all the same
        raise explain(error, f"{repo} was not verified", repo) from error
    inner = f"{subfolder.strip('/')}/" if subfolder else ""
    named = [(sibling.rfilename, sibling.size or 0) for sibling in info.siblings or ()]
    return {name.removeprefix(inner): size for name, size in named if name.startswith(inner)}


def _read_fault(fault: str, folder: Path) -> Fault:
    """A fault of `read_adapter`, with the file it is in and what to do."""
    for name in (LORA_FILE, f"{HEAD_FOLDER}/config.json", f"{HEAD_FOLDER}/diffusion_pytorch_model.safetensors"):
        if fault.startswith(name):
            return Fault(name, fault[len(name) :].lstrip(": ").replace(_AGAIN_THERE, "").rstrip("; "), _AGAIN)
    if "alpha head" in fault:
        return Fault(HEAD_FOLDER, fault, _AGAIN)
    if "nft_config.json" in fault or "has no" in fault:
        return Fault(CONFIG_FILE, fault.replace(f" in {folder}", ""), _AGAIN)
    return Fault(CONFIG_FILE, fault, "mend it in the run's settings and write the adapter again")


_AGAIN_THERE = "download or write it again"


def _link_faults(folder: Path) -> Iterator[Fault]:
    inside = Path(os.path.realpath(folder))
    for path in sorted(folder.rglob("*")):
        # realpath and not resolve, which raises for links that go round in a circle
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
            name = path.relative_to(folder).as_posix()
            yield Fault(name, "is a link to something outside the folder", "put the file itself there, or delete it")


def _header_faults(folder: Path, files: Mapping[str, bytes]) -> Iterator[Fault]:
    """Do the headers hold the config that stands beside them?"""
    paths = [folder / LORA_FILE, *sorted((folder / COMFYUI_FOLDER).glob("*.safetensors"))]
    for name in (path.relative_to(folder).as_posix() for path in paths):
        try:
            header = header_texts(files.get(name, b""), name)
        except AdapterError:  # said by those who read its tensors
            continue
        config = files.get(CONFIG_FILE, b"").decode("utf-8", "replace")
        if config and header.get(CONFIG_HEADER_KEY, config) != config:
            yield Fault(name, f"its header holds another config than {CONFIG_FILE}", _AGAIN)


def _config_faults(adapter: Adapter) -> Iterator[Fault]:
    config = adapter.config
    settings = "mend it in the run's settings and write the adapter again"
    if config.kind == "positive" and config.tilt * config.strength > MAX_TILT:
        yield Fault(
            CONFIG_FILE,
            f"tilt {config.tilt:g} times the recommended strength {config.strength:g} is "
            f"{config.tilt * config.strength:g}, expected at most {MAX_TILT:g}",
            "recommend a smaller strength, or a tilt that was measured (1 to 8 is usual)",
        )
    if config.licence.strip().lower() == UNKNOWN:
        yield Fault(CONFIG_FILE, "licence is unknown", "look it up on the base model's page and set it")
    if config.base_model.id.strip().lower() == UNKNOWN:
        yield Fault(CONFIG_FILE, "base_model.id is unknown", settings)
    if adapter.head is None:
        return
    width, found = adapter.head.config.feature_dim, _tap_widths(adapter)
    if found and width not in found:
        shown = ", ".join(map(str, sorted(found)))
        yield Fault(
            f"{HEAD_FOLDER}/config.json",
            f"feature_dim is {width}, but the LoRA's layers are {shown} wide: the head is of another model",
            "put the head there that was trained with this LoRA",
        )


def _tap_widths(adapter: Adapter) -> set[int]:
    """Widths the image tokens may have, from the attention layers' inputs; empty for UNets, whose widths change."""
    if adapter.config.component != "transformer":
        return set()
    return {tensor.shape[1] for key, tensor in adapter.lora.items() if key.endswith(("to_q.lora_A.weight",))}


def _comfyui_faults(folder: Path, adapter: Adapter, needed: bool) -> Iterator[Fault]:
    """The one file for ComfyUI is one that ComfyUI's nodes can read, and holds the same LoRA, head and settings."""
    wanted = comfyui_file(adapter.config.name)
    for path in sorted((folder / COMFYUI_FOLDER).glob("*.safetensors")):
        if path.name != Path(wanted).name:
            name = f"{COMFYUI_FOLDER}/{path.name}"
            yield Fault(name, f"is another file than {wanted}, which the config names", "delete it or rename it")
    if not (folder / wanted).is_file():
        if needed:
            advice = "`push` adds it, and `diffusion-nft export ADAPTER comfyui` writes it by itself"
            yield Fault(wanted, "is missing, so ComfyUI finds nothing to load", advice)
        return
    try:
        single = read_single_file(folder / wanted)
    except AdapterError as error:
        yield from (Fault(wanted, fault, _AGAIN) for fault in error.faults or (error.what,))
        return
    if single is None:
        yield Fault(wanted, f"has no {CONFIG_HEADER_KEY} in its header, so ComfyUI's nodes do not know it", _AGAIN)
        return
    if (single.head and single.head.config) != (adapter.head and adapter.head.config):
        yield Fault(wanted, f"its alpha head is built in another way than {HEAD_CONFIG_FILE} says", _AGAIN)
    there, expected = _numbers(single), _numbers(adapter)
    different = sorted(
        key for key in there.keys() | expected.keys() if not _same_numbers(there.get(key), expected.get(key))
    )
    if different:
        what = f"{len(different)} tensors are not those of {LORA_FILE} and {HEAD_FOLDER}, such as {different[0]}"
        yield Fault(wanted, what, _AGAIN)


def _numbers(adapter: Adapter) -> dict[str, torch.Tensor]:
    """Every tensor of an adapter by name."""
    head = {} if adapter.head is None else adapter.head.state_dict()
    return {**adapter.lora, **{HEAD_PREFIX + key: tensor for key, tensor in head.items()}}


def _same_numbers(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether both are there and hold the same numbers, in whatever dtype."""
    if one is None or other is None or one.shape != other.shape:
        return False
    return torch.equal(one, other) if one.dtype == other.dtype else torch.equal(one.double(), other.double())


def _base_faults(adapter: Adapter, denoiser: Any) -> Iterator[Fault]:
    advice = "name the base model it was trained on, or take the adapter that was made for this one"
    try:
        check_base(adapter.config, denoiser, adapter.lora)
        check_lora_modules(adapter.lora, denoiser, adapter.config.component)
    except AdapterError as error:
        for fault in error.faults or (error.what,):
            yield Fault(LORA_FILE, fault, advice)
    if adapter.head is not None and adapter.head.config.tap not in dict(unwrap_compiled(denoiser).named_modules()):
        what = f"tap is {adapter.head.config.tap!r}, which the base model does not have"
        yield Fault(f"{HEAD_FOLDER}/config.json", what, advice)


def _report_faults(files: Mapping[str, bytes]) -> Iterator[Fault]:
    if REPORT_FILE not in files:
        return
    try:
        report = RunReport.from_json(files[REPORT_FILE])
    except AdapterError as error:
        for fault in error.faults or (error.what,):
            yield Fault(REPORT_FILE, fault, "mend it, or delete the file and lose its numbers")
        return
    for sample in report.samples:
        if sample.file not in files:
            yield Fault(REPORT_FILE, f"names the picture {sample.file}, which is not there", "put it there, or drop it")


def _card_faults(files: Mapping[str, bytes], adapter: Adapter | None, needed: bool) -> Iterator[Fault]:
    for path, data in sorted(files.items()):
        if path.endswith(".png") and not data.startswith(b"\x89PNG\r\n\x1a\n"):
            yield Fault(path, "is no PNG, whatever its name says", "save it as PNG, or delete it")
        elif path.endswith(".png") and (pixels := png_pixels(data)) > MAX_PIXELS:
            yield Fault(path, f"has {pixels:,} pixels, expected at most {MAX_PIXELS:,}", "make it smaller or delete it")
    again = "render it again with `diffusion-nft card`"
    if CARD_FILE not in files:
        if needed:
            yield Fault(CARD_FILE, "is missing: nobody can tell what this is", again)
        return
    if len(files[CARD_FILE]) > MAX_TEXT_BYTES:
        return
    metadata = _metadata(files[CARD_FILE])
    if metadata is None:
        yield Fault(CARD_FILE, "has no metadata that can be read between its --- lines", again)
        return
    licence = metadata.get("license")
    if not isinstance(licence, str) or licence.lower() in ("", UNKNOWN):
        yield Fault(CARD_FILE, "its metadata has no license", f"{again} --licence ID")
    base, said = adapter.config.base_model.id if adapter is not None else "", metadata.get("base_model")
    if is_hub_id(base) and said != base:
        words = repr(said) if isinstance(said, str) else "no text"  # YAML's aliases make gigabytes out of a few lines
        yield Fault(CARD_FILE, f"its base_model is {words}, the config's {base!r}", again)
    widget = metadata.get("widget") or []
    for entry in widget if isinstance(widget, list) else [widget]:
        output = entry.get("output") if isinstance(entry, Mapping) else None
        url = output.get("url") if isinstance(output, Mapping) else None
        if not isinstance(url, str) or (url not in files and not url.startswith("https://")):
            words = repr(url) if isinstance(url, str) else "no text"
            yield Fault(CARD_FILE, f"its gallery names {words}, which is no file of this adapter", again)


def _metadata(card: bytes) -> dict[str, Any] | None:
    from huggingface_hub import ModelCard

    try:
        values = ModelCard(card.decode("utf-8"), ignore_metadata_errors=False).data.to_dict()
    except Exception:  # YAML's own errors, the Hub's and Python's: all say that this is no metadata
        return None
    return values or None
