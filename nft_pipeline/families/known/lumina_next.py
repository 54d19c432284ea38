"""Lumina-Next."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import Family

FAMILY = Family(
    denoiser="LuminaNextDiT2DModel",
    noise_level=levels.reversed_flow(),
    lora_scale="cross_attention_kwargs",
    sign=-1,
    cfg="conditional_first",
    unbatched=frozenset({"image_rotary_emb"}),
)
