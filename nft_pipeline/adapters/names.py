"""Names of an adapter's files and of the entries in their headers, and how large each may be.

The contract stands in docs/adapter_format.md. Standard library only.
"""

from __future__ import annotations

CONFIG_FILE = "nft_config.json"
LORA_FILE = "pytorch_lora_weights.safetensors"  # diffusers' own name, so that its loaders find the file
HEAD_FOLDER = "alpha_head"
HEAD_CONFIG_FILE = "alpha_head/config.json"
HEAD_FILE = "alpha_head/diffusion_pytorch_model.safetensors"
COMFYUI_FOLDER = "comfyui"

LORA_METADATA_KEY = "lora_adapter_metadata"  # diffusers' name for the header entry that carries r and lora_alpha
CONFIG_HEADER_KEY = "diffusion_nft"  # the header entry with all of nft_config.json
HEAD_CONFIG_HEADER_KEY = "diffusion_nft_alpha_head"
HASH_HEADER_KEY = "modelspec.hash_sha256"

HEAD_PREFIX = "alpha_head."  # of the head's tensors in the single file
PEFT_PREFIX = "base_model.model."  # of every key that peft writes

MAX_CONFIG_BYTES = 1_000_000
MAX_LORA_BYTES = 16 * 2**30
MAX_HEAD_BYTES = 2 * 2**30
MAX_JSON_BYTES = 50_000_000  # for any .json beside an adapter, for example a tokenizer's; our own are far smaller
MAX_PICTURE_BYTES = 20_000_000
MAX_REPOSITORY_BYTES = 64 * 2**30


def comfyui_file(name: str) -> str:
    """The path, in an adapter's folder, of the one file that ComfyUI's nodes load, for the adapter of that name."""
    return f"{COMFYUI_FOLDER}/{name}.safetensors"
