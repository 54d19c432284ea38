"""LongCat-Image."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import JOINT_ATTENTION, Family

FAMILY = Family(
    denoiser="LongCatImageTransformer2DModel",
    noise_level=levels.flow(),
    lora_scale="",
    lora_targets=JOINT_ATTENTION,
    cfg="two_calls",
    unbatched=frozenset({"img_ids", "txt_ids"}),
)
