"""HunyuanImage 2.1."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import JOINT_ATTENTION, Family

FAMILY = Family(
    denoiser="HunyuanImageTransformer2DModel",
    noise_level=levels.flow(1000),
    lora_targets=JOINT_ATTENTION,
    cfg="two_calls",
)
