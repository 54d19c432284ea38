"""Writing an adapter: the folder that docs/adapter_format.md describes, put in place in one step.

    pytorch_lora_weights.safetensors   the LoRA, diffusers keys, lora_alpha == rank in the header
    alpha_head/                        config.json, diffusion_pytorch_model.safetensors (positive adapters)
    nft_config.json
    comfyui/<name>.safetensors         all of it in one file, for ComfyUI's models/loras
    README.md, samples/, plots/, ...   what the caller adds

The single file carries the LoRA with an `.alpha` per layer, the head's tensors under "alpha_head.", and in its header
nft_config.json under "diffusion_nft" and alpha_head/config.json under "diffusion_nft_alpha_head". Both LoRA files have
modelspec.* and ss_* texts in their headers, which model managers read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from torch import Tensor

from ..errors import AdapterError
from ..files.atomic import atomic_folder, recover
from ..files.strict import safetensors_bytes
from .config import AdapterConfig
from .content import Adapter
from .keys import SECOND, component_lora, head_to_comfyui, lora_modules, lora_to_comfyui
from .names import (
    COMFYUI_FOLDER,
    CONFIG_FILE,
    CONFIG_HEADER_KEY,
    HASH_HEADER_KEY,
    HEAD_CONFIG_FILE,
    HEAD_CONFIG_HEADER_KEY,
    HEAD_FILE,
    HEAD_FOLDER,
    LORA_FILE,
    LORA_METADATA_KEY,
    comfyui_file,
)

# Beside the contract's own names, what may stand in an adapter's folder and is replaced with it.
CARD_NAMES = {"README.md", "run_report.json", "samples", "plots"}


def write_adapter(
    folder: str | os.PathLike[str], adapter: Adapter, extra_files: Mapping[str, bytes] | None = None
) -> Path:
    """Write an adapter's folder. An older one is replaced as a whole: readers find the old one or the new one.

    Args:
        folder: the folder to write; made when missing. An adapter in it is replaced with everything in its folder. A
            folder that is not an adapter's, or that holds files this write would not put back, is refused.
        adapter: checked in full before anything is written.
        extra_files: further files by relative path, such as {"README.md": ..., "samples/0.png": ...}.

    Returns:
        The folder.

    Raises:
        AdapterError: the adapter has faults or a LoRA for v_old, a path leaves the folder, something else stands
            there, or the disk failed. The old folder is then unchanged.
    """
    extras = dict(extra_files or {})
    target = Path(folder)
    if adapter.old is not None:
        raise AdapterError(
            f'the adapter "{adapter.config.name}" was not written: it has a LoRA for v_old (Adapter.old), and the '
            "format has no place for one; without it the adapter would be another one",
            advice="Read the checkpoint with use_old=False, so that v_old is the base model, and write that.",
        )
    adapter.check(f'the adapter "{adapter.config.name}" was not written: it')
    faults = [fault for name, data in extras.items() for fault in _extra_faults(name, data)]
    if faults:
        raise AdapterError("the adapter was not written: its extra files have faults", faults)
    try:
        check_replaceable(recover(target), extras)
        with atomic_folder(target) as new:
            for name, data in {**adapter_files(adapter), **extras}.items():
                path = new / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    except OSError as error:
        raise AdapterError(
            f"the adapter could not be written to {target}: {error.strerror or error}; what stood there is unchanged",
            advice="Free some space or choose a folder you may write to, then write it again.",
        ) from error
    return target


def adapter_files(adapter: Adapter) -> dict[str, bytes]:
    """Every file of the contract, by relative path; the same bytes for the same adapter.

    Args:
        adapter: checked.
    """
    config = adapter.config
    lora = {key: _plain(tensor) for key, tensor in adapter.lora.items()}
    said = {}
    for component in (config.component, config.component + SECOND):
        part = component_lora(lora, component)
        if part:
            facts = {"r": config.rank, "lora_alpha": config.rank, "target_modules": lora_modules(part)}
            said.update({f"{component}.{name}": value for name, value in facts.items()})
    texts = _header(config)
    files = {
        LORA_FILE: safetensors_bytes(lora, {**texts, LORA_METADATA_KEY: _json(said)}, HASH_HEADER_KEY),
        CONFIG_FILE: config.to_json().encode(),
    }
    single, single_header = lora_to_comfyui(lora, config.rank), dict(texts)
    if adapter.head is not None:
        state = {key: _plain(tensor) for key, tensor in adapter.head.state_dict().items()}
        head_config = _json(adapter.head.config.to_dict())
        files[HEAD_CONFIG_FILE] = head_config.encode()
        head_header = {"format": "pt", HEAD_CONFIG_HEADER_KEY: head_config}
        files[HEAD_FILE] = safetensors_bytes(state, head_header, HASH_HEADER_KEY)
        single |= head_to_comfyui(state)
        single_header[HEAD_CONFIG_HEADER_KEY] = head_config
    files[comfyui_file(config.name)] = safetensors_bytes(single, single_header, HASH_HEADER_KEY)
    return files


def _header(config: AdapterConfig) -> dict[str, str]:
    """What both LoRA files say about themselves. Texts only: a safetensors header is a flat table of texts.

    modelspec.* (https://github.com/Stability-AI/ModelSpec) and ss_* are what model managers read; `diffusion_nft` is
    the whole config, so that a file that was parted from its folder still says what it is.
    """
    height, width = config.resolution
    return {
        "format": "pt",
        CONFIG_HEADER_KEY: config.to_json(),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{config.denoiser}/lora",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": config.name,
        "modelspec.description": str(config.reward["description"]),
        "modelspec.license": config.licence,
        "modelspec.resolution": f"{width}x{height}",
        "modelspec.tags": "diffusion-nft, lora",
        "modelspec.usage_hint": "reward guidance: v = v_old + scale (v_lora - v_old); as a plain LoRA, without its "
        "alpha, it goes all the way",
        "ss_base_model_version": config.base_model.id,
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(config.rank),
    }


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, sharing memory with nothing: safetensors refuses tensors that overlap."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _extra_faults(name: str, data: object) -> list[str]:
    """The faults of a further file: its name or its data may not be in an adapter's folder."""
    if not isinstance(data, bytes | bytearray | memoryview):
        return [f"{name!r} holds {type(data).__name__}, expected bytes"]
    parts = name.split("/") if isinstance(name, str) else []
    if (
        not parts
        or any(part in ("", ".", "..") for part in parts)
        or any(character in name for character in '\\:\0*?"<>|')
        or parts[0] == ".git"
    ):
        return [f"{name!r} is no path inside the folder, expected one such as 'samples/0.png'"]
    ours = {LORA_FILE, CONFIG_FILE, HEAD_FOLDER, COMFYUI_FOLDER}
    if parts[0].casefold() in {own.casefold() for own in ours}:
        return [f"{name!r} is a name the adapter itself uses; choose another"]
    return []


def check_replaceable(target: Path, extras: Mapping[str, bytes]) -> None:
    """Raise unless the folder may be replaced as a whole: it is missing or empty, or holds an adapter and nothing else.

    Args:
        target: the folder that is to be replaced.
        extras: files beside the contract's own that will be there afterwards.

    Raises:
        AdapterError: naming what would be deleted.
    """
    if not target.is_dir():
        return
    found = {path.name for path in target.iterdir()}
    if not found:
        return
    if CONFIG_FILE not in found:
        raise AdapterError(
            f"{target} exists and is no adapter (it has no {CONFIG_FILE}); writing there would delete what it holds",
            advice="Choose a new or empty folder.",
        )
    ours = {LORA_FILE, CONFIG_FILE, HEAD_FOLDER, COMFYUI_FOLDER} | CARD_NAMES
    ours |= {PurePosixPath(name).parts[0] for name in extras}
    foreign = sorted(found - ours)
    if foreign:
        raise AdapterError(
            f"{target} also holds {', '.join(foreign[:8])}; replacing the adapter would delete them",
            advice="Move them elsewhere, or write to a new folder.",
        )
