"""Reading comfyui/<name>.safetensors: LoRA, alpha head and config in one file, as strictly as the folder.

    adapter = read_single_file("models/loras/shapes-warm.safetensors")

What such a file holds: `nft_pipeline.adapters.write`. Torch only, for the nodes in ComfyUI.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from ..errors import AdapterError
from ..files.strict import TensorFile, read_safetensors
from .config import AdapterConfig, parse_json
from .content import Adapter, head_faults, lora_faults
from .keys import comfyui_to_head, lora_from_comfyui
from .names import (
    CONFIG_HEADER_KEY,
    HASH_HEADER_KEY,
    HEAD_CONFIG_HEADER_KEY,
    HEAD_PREFIX,
    MAX_HEAD_BYTES,
    MAX_LORA_BYTES,
)
from .read import build_head, head_config


def read_single_file(path: str | os.PathLike[str]) -> Adapter | None:
    """The adapter in a single file; None if the file is not one of ours (it may be another tool's LoRA).

    Args:
        path: the .safetensors file.

    Returns:
        The adapter, on the CPU; the LoRA in the dtype it was saved in, the head in fp32.

    Raises:
        AdapterError: the file is damaged, or the adapter in it has faults; all of them are in the one error.
    """
    path = Path(path)
    file = read_safetensors(
        path, path.name, MAX_LORA_BYTES + MAX_HEAD_BYTES, HASH_HEADER_KEY, hashed_with=CONFIG_HEADER_KEY
    )
    if CONFIG_HEADER_KEY not in file.header:
        return None
    shown = f"the adapter {path.name}"
    try:
        config = AdapterConfig.from_json(file.header[CONFIG_HEADER_KEY], f"{CONFIG_HEADER_KEY} in the header")
    except AdapterError as error:
        raise AdapterError(f"{shown} has faults", error.faults or [str(error)], error.advice) from None
    head_tensors = comfyui_to_head(file.tensors)
    lora, faults = _lora(file, config)
    faults += lora_faults(lora, config)
    if file.hash_fault:
        faults.append(file.hash_fault)
    head = None
    if head_tensors or HEAD_CONFIG_HEADER_KEY in file.header:
        text = file.header.get(HEAD_CONFIG_HEADER_KEY, "")
        where = f"{HEAD_CONFIG_HEADER_KEY} in the header"
        try:
            head = build_head(head_config(parse_json(text, where), where), head_tensors, "alpha_head")
        except AdapterError as error:
            faults += error.faults or [str(error)]
    if head is not None or not head_tensors:
        faults += head_faults(head, config)
    if faults:
        raise AdapterError(f"{shown} has faults", faults, "Download it again, or ask its author.")
    return Adapter(config, lora, head)


def _lora(file: TensorFile, config: AdapterConfig) -> tuple[dict[str, Tensor], list[str]]:
    """The LoRA without its scales, which must all be 1: alpha equal to the rank, one for each layer."""
    ours = lora_from_comfyui({k: tensor for k, tensor in file.tensors.items() if not k.startswith(HEAD_PREFIX)})
    lora = {key: tensor for key, tensor in ours.items() if not key.endswith(".alpha")}
    faults = []
    for module in sorted({key.rpartition(".lora_")[0] for key in lora}):
        alpha = ours.get(f"{module}.alpha")
        if alpha is None:
            faults.append(f"{module} has no alpha tensor, expected one equal to the rank {config.rank}")
        elif alpha.numel() != 1 or float(alpha) != config.rank:
            shown = alpha.flatten()[:4].tolist()
            faults.append(f"{module}.alpha is {shown}, expected the rank {config.rank}: the scale is baked into lora_B")
    return lora, faults
