"""CogView4."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import Family

FAMILY = Family(
    denoiser="CogView4Transformer2DModel",
    noise_level=levels.scheduled_flow,
    cfg="two_calls",
    unbatched=frozenset({"image_rotary_emb"}),
)
