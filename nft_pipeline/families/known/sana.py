"""Sana."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import Family

FAMILY = Family(denoiser="SanaTransformer2DModel", noise_level=levels.sana)
