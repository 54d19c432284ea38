"""CogVideoX."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import Family

FAMILY = Family(
    denoiser="CogVideoXTransformer3DModel",
    prediction="v",
    noise_level=levels.variance_preserving(),
    unbatched=frozenset({"image_rotary_emb"}),
    video=True,
)
