"""Qwen-Image."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import JOINT_ATTENTION, Family

FAMILY = Family(
    denoiser="QwenImageTransformer2DModel",
    noise_level=levels.flow(),
    lora_targets=JOINT_ATTENTION,
    cfg="two_calls",
    row_lists=frozenset({"img_shapes", "txt_seq_lens"}),
    comfyui_tap="diffusion_model.norm_out",
)
