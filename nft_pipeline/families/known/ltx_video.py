"""LTX-Video."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import Family

FAMILY = Family(
    denoiser="LTXVideoTransformer3DModel",
    noise_level=levels.flow(1000),
    unbatched=frozenset({"rope_interpolation_scale"}),
    video=True,
)
