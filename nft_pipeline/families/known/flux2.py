"""FLUX.2, FLUX.2 klein included."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import JOINT_ATTENTION, Family

FAMILY = Family(
    denoiser="Flux2Transformer2DModel",
    noise_level=levels.flow(),
    lora_scale="joint_attention_kwargs",
    lora_targets=(*JOINT_ATTENTION, "to_qkv_mlp_proj"),
    cfg="two_calls",
    comfyui_tap="diffusion_model.final_layer",
)
