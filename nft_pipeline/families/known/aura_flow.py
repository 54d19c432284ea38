"""AuraFlow."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import JOINT_ATTENTION, Family

FAMILY = Family(
    denoiser="AuraFlowTransformer2DModel",
    noise_level=levels.flow(),
    lora_targets=JOINT_ATTENTION,
)
