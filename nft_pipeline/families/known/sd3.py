"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

import re

from torch import nn

from .. import noise_level as levels
from ..family import JOINT_ATTENTION, Family
from ..layer_names import LayerNames, Pieces

_BLOCK = re.compile(r"joint_blocks_(\d+)_(x_block|context_block)_(\w+)")
# Of the original checkpoints. q, k and v are one matrix there.
_IN_BLOCKS = {
    ("x_block", "attn_qkv"): ("attn.to_q", "attn.to_k", "attn.to_v"),
    ("x_block", "attn_proj"): ("attn.to_out.0",),
    ("x_block", "attn2_qkv"): ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    ("x_block", "attn2_proj"): ("attn2.to_out.0",),
    ("x_block", "mlp_fc1"): ("ff.net.0.proj",),
    ("x_block", "mlp_fc2"): ("ff.net.2",),
    ("x_block", "adaLN_modulation_1"): ("norm1.linear",),
    ("context_block", "attn_qkv"): ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    ("context_block", "attn_proj"): ("attn.to_add_out",),
    ("context_block", "mlp_fc1"): ("ff_context.net.0.proj",),
    ("context_block", "mlp_fc2"): ("ff_context.net.2",),
    ("context_block", "adaLN_modulation_1"): ("norm1_context.linear",),
}
_OUTSIDE = {
    "x_embedder_proj": "pos_embed.proj",
    "context_embedder": "context_embedder",
    "t_embedder_mlp_0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder_mlp_2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder_mlp_0": "time_text_embed.text_embedder.linear_1",
    "y_embedder_mlp_2": "time_text_embed.text_embedder.linear_2",
    "final_layer_linear": "proj_out",
    "final_layer_adaLN_modulation_1": "norm_out.linear",
}


def _original(layer: str, denoiser: nn.Module) -> Pieces | None:
    """Two modulations have (shift, scale) in the original and (scale, shift) in diffusers: the last norm's, and the
    last context block's."""
    if layer in _OUTSIDE:
        return Pieces((_OUTSIDE[layer],), swapped=layer == "final_layer_adaLN_modulation_1")
    match = _BLOCK.fullmatch(layer)
    names = () if match is None else _IN_BLOCKS.get((match[2], match[3]), ())
    if match is None or not names:
        return None
    is_last = int(match[1]) == len(denoiser.transformer_blocks) - 1  # type: ignore[arg-type]
    modules = tuple(f"transformer_blocks.{match[1]}.{name}" for name in names)
    return Pieces(modules, swapped=is_last and names == ("norm1_context.linear",))


FAMILY = Family(
    denoiser="SD3Transformer2DModel",
    noise_level=levels.flow(1000),
    lora_scale="joint_attention_kwargs",
    lora_targets=JOINT_ATTENTION,
    is_auxiliary=lambda inputs: inputs.get("skip_layers") is not None,
    comfyui_tap="diffusion_model.final_layer",
    layer_names=LayerNames(kohya_prefix="lora_transformer_", original=_original),
    workflows={"": "2-sd3.5-medium"},
)
