"""Ideogram 4: text and picture are one sequence, and time runs from noise to picture.

The unconditional prediction is that of another model, `unconditional_transformer`, which is left as it is.
"""

from __future__ import annotations

from .. import noise_level as levels
from ..family import Family

FAMILY = Family(
    denoiser="Ideogram4Transformer2DModel",
    noise_level=levels.reversed_flow(),
    tap="final_layer",
    sign=-1,
    cfg="two_calls",
)
