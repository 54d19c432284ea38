"""SkyReels V2."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import Family
from ..layer_names import LayerNames
from .wan import original

FAMILY = Family(
    denoiser="SkyReelsV2Transformer3DModel",
    noise_level=levels.flow(1000),
    cfg="two_calls",
    video=True,
    layer_names=LayerNames(original=original),
)
