"""Mochi."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import JOINT_ATTENTION, Family

FAMILY = Family(
    denoiser="MochiTransformer3DModel",
    noise_level=levels.reversed_flow(1000),
    lora_targets=JOINT_ATTENTION,
    sign=-1,
    video=True,
)
