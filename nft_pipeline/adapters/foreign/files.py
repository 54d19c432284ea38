"""Finding and opening the files of checkpoints that others made; what they are is said here, not guessed.

    peft folder      adapter_config.json, adapter_model.safetensors; an adapter called "old" in old/
    diffusers file   pytorch_lora_weights.safetensors, with or without lora_adapter_metadata in its header
    LoRA file        any other .safetensors: kohya, ComfyUI, ai-toolkit

A folder around one of these is read too: DiffusionNFT and flow_grpo write checkpoint-300/lora/ beside optimizer.pt,
Flow-Factory checkpoint-10/ itself, or a folder for each part of the pipeline. Pickles are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import AdapterError
from ...files.strict import read_plain_file, read_safetensors, tensor_faults
from ..config import parse_json
from ..names import CONFIG_HEADER_KEY, LORA_FILE, LORA_METADATA_KEY, MAX_CONFIG_BYTES, MAX_LORA_BYTES
from .layers import Layer, read_layers, without_text_encoder
from .lycoris import as_plain_lora
from .peft_scale import config_faults

Convert = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
OLD_FOLDER = "old"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_OTHER_STATE = ("optimizer", "scheduler", "random_states", "model-", "model.", "diffusion_pytorch_model")


@dataclass(frozen=True)
class ForeignFiles:
    """Where a checkpoint's parts are, and which form it has.

    Args:
        form: "peft folder", "diffusers file" or "LoRA file" (kohya, ComfyUI, ai-toolkit), for people.
        weights: the safetensors file.
        peft_config: adapter_config.json; None for single files.
        old: the folder of the adapter called "old" beside it, if there is one.
    """

    form: str
    weights: Path
    peft_config: Path | None = None
    old: Path | None = None


@dataclass(frozen=True)
class ForeignLora:
    """A LoRA as its file has it, read and checked, not yet renamed.

    Args:
        layers: under the file's own names, with the scale not yet baked in.
        peft_config: fields of the LoraConfig that came with it, None if none did.
        left_out: how many layers of each text encoder are in the file and not among `layers`.
    """

    layers: Mapping[str, Layer]
    peft_config: Mapping[str, Any] | None
    left_out: Mapping[str, int] = field(default_factory=dict)


def looks_foreign(path: Path) -> bool:
    """Is this a .safetensors file, or a folder that holds, itself or one folder down, what `find_files` looks for?"""
    if path.is_file():
        return True
    return path.is_dir() and any(
        entry.suffix in (".safetensors", *PICKLES) or entry.name == PEFT_CONFIG
        for folder in (path, *_folders(path))
        for entry in folder.iterdir()
    )


def find_files(path: Path, component: str = "transformer") -> ForeignFiles:
    """The files of a checkpoint.

    Args:
        path: a .safetensors file; a folder with adapter_config.json, or with one LoRA file; or the folder around them,
            such as DiffusionNFT's and flow_grpo's checkpoint-300 (lora/ beside optimizer.pt) and Flow-Factory's, with a
            folder for each part of the pipeline.
        component: the part that is wanted where there are several.

    Raises:
        AdapterError: nothing there, several things there, or pickles.
    """
    if path.is_file():
        if path.suffix in PICKLES:
            raise _pickle_error(path, [path.name])
        return ForeignFiles(_form_of(path), path)
    if (path / PEFT_CONFIG).is_file():
        return peft_folder(path)
    inner = [folder for folder in _folders(path) if (folder / PEFT_CONFIG).is_file() and folder.name != OLD_FOLDER]
    wanted = [folder for folder in inner if folder.name == component] or inner
    if len(inner) > 1:
        raise AdapterError(
            f"{path} holds several LoRAs: {', '.join(folder.name for folder in inner)}; one is guided at a time",
            advice=f"Give one of them: subfolder={wanted[0].name!r}. The others are left out then.",
        )
    if inner:
        return peft_folder(inner[0])
    return _single_file(path)


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir())


def peft_folder(folder: Path) -> ForeignFiles:
    """The files of a folder that peft wrote, and of the `old` adapter beside it if there is one.

    Raises:
        AdapterError: the weights are missing or pickled.
    """
    weights = folder / PEFT_WEIGHTS
    if not weights.is_file():
        pickles = sorted(entry.name for entry in folder.iterdir() if entry.suffix in PICKLES)
        if pickles:
            raise _pickle_error(folder, pickles)
        raise AdapterError(f"{folder} has {PEFT_CONFIG} but no {PEFT_WEIGHTS}; the checkpoint is incomplete")
    # peft writes the adapter "default" into the folder itself and others into folders of their names.
    beside = (folder / OLD_FOLDER, folder.parent / OLD_FOLDER if folder.name == "default" else folder / OLD_FOLDER)
    old = next((place for place in beside if (place / PEFT_CONFIG).is_file()), None)
    return ForeignFiles("peft folder", weights, folder / PEFT_CONFIG, old)


def _single_file(folder: Path) -> ForeignFiles:
    found = sorted(entry for entry in folder.iterdir() if entry.is_file())
    files = [entry for entry in found if entry.suffix == ".safetensors" and not entry.name.startswith(_OTHER_STATE)]
    files = [entry for entry in files if entry.name == LORA_FILE] or files
    if len(files) == 1:
        return ForeignFiles(_form_of(files[0]), files[0])
    if files:
        raise AdapterError(
            f"{folder} holds {len(files)} .safetensors files: {', '.join(entry.name for entry in files[:8])}",
            advice="Give the path of the one you mean.",
        )
    pickles = [entry.name for entry in found if entry.suffix in PICKLES]
    if pickles:
        raise _pickle_error(folder, pickles)
    deeper = sorted(str(entry.parent.relative_to(folder)) for entry in folder.glob(f"*/*/{PEFT_CONFIG}"))
    deeper += sorted(str(entry.parent.relative_to(folder)) for entry in folder.glob(f"*/*/*/{PEFT_CONFIG}"))
    names = ", ".join(entry.name for entry in sorted(folder.iterdir())[:8]) or "nothing"
    raise AdapterError(
        f"{folder} holds no LoRA; found {names}",
        advice=f"Give one of {', '.join(deeper[-4:])} in it."
        if deeper
        else f"Expected {PEFT_CONFIG} with {PEFT_WEIGHTS}, in it or one folder down, or one .safetensors file.",
    )


def _form_of(file: Path) -> str:
    return "diffusers file" if file.name == LORA_FILE else "LoRA file"


def _pickle_error(path: Path, names: list[str]) -> AdapterError:
    return AdapterError(
        f"{path} has its weights in {', '.join(names[:4])}, a pickle, which can run code and is never loaded",
        advice="Ask its author for safetensors, or convert it where you trust it: "
        "safetensors.torch.save_file(torch.load(file, weights_only=True), 'lora.safetensors').",
    )


def read_lora(files: ForeignFiles, *, leave_out_text: bool = False, convert: Convert | None = None) -> ForeignLora:
    """Read a checkpoint's LoRA and the config that gives its scale.

    Args:
        files: from `find_files`.
        leave_out_text: whether layers of text encoders are left out; by default they are an error.
        convert: renames the keys of the file's tensors before they are read, as another tool's loader does it. Default
            None: they are read as they are.

    Raises:
        AdapterError: a damaged file, numbers that are none, a config or tensors that are not those of a plain LoRA.
    """
    shown = files.weights.name
    file = read_safetensors(files.weights, shown, MAX_LORA_BYTES)
    if CONFIG_HEADER_KEY in file.header:
        raise AdapterError(
            f"{shown} is a file out of an adapter of this package",
            advice="Give the adapter's folder (with nft_config.json); it says its kind and beta itself.",
        )
    if files.peft_config is not None:
        peft_config: Mapping[str, Any] | None = parse_json(
            read_plain_file(files.peft_config, PEFT_CONFIG, MAX_CONFIG_BYTES), PEFT_CONFIG
        )
    else:
        peft_config = _metadata(file.header)
    faults = [f"{shown}: {fault}" for fault in tensor_faults(file.tensors)]
    if peft_config is not None:
        where = PEFT_CONFIG if files.peft_config is not None else f"{LORA_METADATA_KEY} in the header"
        faults += [f"{where}: {fault}" for fault in config_faults(peft_config)]
    tensors = file.tensors if convert is None else convert(file.tensors)
    tensors, left_out = without_text_encoder(tensors) if leave_out_text else (tensors, {})
    try:
        layers = read_layers(as_plain_lora(tensors))
    except AdapterError as error:
        raise AdapterError(f"{shown}: {error.what}", [*faults, *error.faults], error.advice) from None
    if faults:
        raise AdapterError(f"{shown} is not one plain LoRA", faults, "Export it as a plain LoRA.")
    return ForeignLora(layers, peft_config, left_out)


def _metadata(header: Mapping[str, str]) -> Mapping[str, Any] | None:
    """The LoraConfig in the header of a file diffusers wrote, without the component before its fields."""
    if LORA_METADATA_KEY not in header:
        return None
    said = parse_json(header[LORA_METADATA_KEY], f"{LORA_METADATA_KEY} in the header")
    parts = {key.partition(".")[0] for key in said if "." in key}
    parts = {part for part in parts if not part.startswith("text_encoder")}
    if len(parts) > 1:
        raise AdapterError(
            f"the header's {LORA_METADATA_KEY} is for {', '.join(sorted(parts))}; one is guided at a time"
        )
    prefix = f"{next(iter(parts))}." if parts else ""
    return {key.removeprefix(prefix): value for key, value in said.items() if key.startswith(prefix)}
