"""Lumina-Image 2."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import Family

FAMILY = Family(
    denoiser="Lumina2Transformer2DModel",
    noise_level=levels.reversed_flow(),
    sign=-1,
    cfg="two_calls",
)
