"""Wan."""

from __future__ import annotations

import re

from torch import nn

from .. import noise_level as levels
from ..family import Family
from ..layer_names import LayerNames, Pieces

_BLOCK = re.compile(r"(blocks|vace_blocks)_(\d+)_(\w+)")
# Of the original checkpoints.
_IN_BLOCKS = {
    "ffn_0": "ffn.net.0.proj",
    "ffn_2": "ffn.net.2",
    "before_proj": "proj_in",
    "after_proj": "proj_out",
    "cross_attn_k_img": "attn2.add_k_proj",
    "cross_attn_v_img": "attn2.add_v_proj",
}
_IN_BLOCKS |= {
    f"{theirs}_{short}": f"{ours}.{name}"
    for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
    for short, name in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))
}
_OUTSIDE = {
    "time_projection_1": "condition_embedder.time_proj",
    "text_embedding_0": "condition_embedder.text_embedder.linear_1",
    "text_embedding_2": "condition_embedder.text_embedder.linear_2",
    "time_embedding_0": "condition_embedder.time_embedder.linear_1",
    "time_embedding_2": "condition_embedder.time_embedder.linear_2",
    "img_emb_proj_1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb_proj_3": "condition_embedder.image_embedder.ff.net.2",
    "head_head": "proj_out",
}


def original(layer: str, denoiser: nn.Module) -> Pieces | None:
    """diffusers' own converters take whole sets of layers alone, and those of musubi-tuner no other than a block's."""
    if layer in _OUTSIDE:
        return Pieces((_OUTSIDE[layer],))
    match = _BLOCK.fullmatch(layer)
    name = None if match is None else _IN_BLOCKS.get(match[3])
    return None if match is None or name is None else Pieces((f"{match[1]}.{match[2]}.{name}",))


FAMILY = Family(
    denoiser="WanTransformer3DModel",
    noise_level=levels.flow(1000),
    cfg="two_calls",
    comfyui_tap="diffusion_model.head",
    video=True,
    layer_names=LayerNames(original=original),
)
