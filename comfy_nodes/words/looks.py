"""Which family of models a LoRA's layers look like, so that an error about a wrong file can name it.

Names are compared with underscores for dots, as kohya writes them. Where two families have the same names, the width of
what a layer reads decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from nft_pipeline.adapters.foreign.layers import Layer

# The first row that fits counts. Widths: of what a layer whose name fits reads; None for any.
_ROWS: tuple[tuple[str, str, int | None], ...] = (
    ("Qwen-Image", r"transformer_blocks_\d+_(img|txt)_(mlp|mod)", None),
    ("FLUX.2", r"single_transformer_blocks_\d+_attn_to_qkv_mlp_proj", None),
    ("FLUX.2", r"(?<!single_)(double|single)_blocks_\d+_(img_attn_qkv|linear1)", 6144),
    ("HunyuanVideo", r"double_blocks_\d+_(img|txt)_mod_linear", None),
    ("FLUX.1", r"(double|single)_blocks_\d+_", None),
    ("FLUX.1", r"single_transformer_blocks_\d+_", None),
    ("Stable Diffusion 3.5 large", r"(joint_blocks|transformer_blocks)_\d+_.*(attn_qkv|add_[qkv]_proj|to_q$)", 2432),
    ("Stable Diffusion 3 or 3.5 medium", r"(joint_blocks|transformer_blocks)_\d+_.*(attn_qkv|add_[qkv]_proj)", 1536),
    ("Stable Diffusion 3", r"joint_blocks_\d+_", None),
    ("Qwen-Image", r"transformer_blocks_[2-5]\d_attn_add_[qkv]_proj", 3072),
    ("FLUX.1", r"transformer_blocks_\d+_attn_add_[qkv]_proj", 3072),
    ("Stable Diffusion 3", r"transformer_blocks_\d+_attn_add_[qkv]_proj", None),
    ("SDXL", r"(down|up|mid|input|output|middle)_blocks?_.*attn2_to_[kv]", 2048),
    ("Stable Diffusion 2", r"(down|up|mid|input|output|middle)_blocks?_.*attn2_to_[kv]", 1024),
    ("Stable Diffusion 1.5", r"(down|up|mid|input|output|middle)_blocks?_.*attn2_to_[kv]", 768),
    ("SDXL", r"(down|up|mid|input|output|middle)_blocks?_.*transformer_blocks_[1-9]", None),
    ("Stable Diffusion 1.5 or SDXL", r"(down|up|mid|input|output|middle)_blocks?_\d", None),
    ("Wan", r"(?<!transformer_)blocks_\d+_(cross_attn|self_attn|attn[12])_", None),
    ("Z-Image or Lumina 2", r"layers_\d+_(attention|feed_forward)_", None),
    ("LTX-Video or PixArt", r"transformer_blocks_\d+_attn[12]_to_", None),
)


def family_of(layers: Mapping[str, Layer]) -> str:
    """What people call the family, or "" if no row fits.

    Args:
        layers: a LoRA's, under the names of their file.
    """
    widths = {path.replace(".", "_"): layer.a.shape[1] for path, layer in layers.items()}
    for family, pattern, width in _ROWS:
        fits = re.compile(pattern)
        if any(fits.search(name) and width in (None, inside) for name, inside in widths.items()):
            return family
    return ""
