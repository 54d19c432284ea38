"""Wan VACE, which follows videos, masks and pictures."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import Family
from ..layer_names import LayerNames
from .wan import original

FAMILY = Family(
    denoiser="WanVACETransformer3DModel",
    noise_level=levels.flow(1000),
    cfg="two_calls",
    unbatched=frozenset({"control_hidden_states_scale"}),
    video=True,
    layer_names=LayerNames(original=original),
)
