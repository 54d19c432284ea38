"""PixArt."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import Family

# The second half of the output may be a variance, which the pipelines drop; guiding it too does no harm.
FAMILY = Family(
    denoiser="PixArtTransformer2DModel",
    prediction="epsilon",
    noise_level=levels.variance_preserving(),
    lora_scale="cross_attention_kwargs",
)
