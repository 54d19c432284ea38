"""Cosmos, which draws pictures and videos."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import Family

FAMILY = Family(
    denoiser="CosmosTransformer3DModel",
    noise_level=levels.flow(),
    lora_scale="",
    cfg="two_calls",
    unbatched=frozenset({"padding_mask"}),
)
