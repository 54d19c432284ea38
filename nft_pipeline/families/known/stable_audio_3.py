"""Stable Audio 3."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import Family

FAMILY = Family(
    denoiser="StableAudio3DiTModel",
    noise_level=levels.scheduled_flow,
    lora_scale="",
    lora_targets=("to_qkv", "to_q", "to_kv", "to_out"),
    tap="proj_out",
)
