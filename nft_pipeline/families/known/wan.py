"""Wan."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import Family

FAMILY = Family(
    denoiser="WanTransformer3DModel",
    noise_level=levels.flow(1000),
    cfg="two_calls",
    comfyui_tap="diffusion_model.head",
    video=True,
)
