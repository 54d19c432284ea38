"""Chroma."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import JOINT_ATTENTION, Family

FAMILY = Family(
    denoiser="ChromaTransformer2DModel",
    noise_level=levels.flow(),
    lora_scale="joint_attention_kwargs",
    lora_targets=JOINT_ATTENTION,
    cfg="two_calls",
    unbatched=frozenset({"img_ids", "txt_ids"}),
    comfyui_tap="diffusion_model.final_layer",
)
