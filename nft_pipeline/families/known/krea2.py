"""Krea 2, Raw and Turbo."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import Family

FAMILY = Family(
    denoiser="Krea2Transformer2DModel",
    noise_level=levels.flow(),
    tap="final_layer",
    cfg="two_calls",
    unbatched=frozenset({"position_ids"}),
)
