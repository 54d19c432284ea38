"""Stable Diffusion 1, 2 and XL, and whatever else has their UNet."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import Family
from ..layer_names import LayerNames

# Stable Diffusion 2.1 predicts v, which only its scheduler says; guidance does not depend on it.
FAMILY = Family(
    denoiser="UNet2DConditionModel",
    prediction="epsilon",
    component="unet",
    noise_level=levels.variance_preserving(state="sample"),
    state="sample",
    lora_scale="cross_attention_kwargs",
    tap="conv_norm_out",
    comfyui_tap="diffusion_model.out.0",
    layer_names=LayerNames(
        kohya_prefix="lora_unet_",
        pipeline="StableDiffusionXLPipeline",
        spelling="kohya",
        config_argument="unet_config",
    ),
    workflows={"xl": "4-sdxl"},
)
