"""Stable Audio Open, which makes sounds."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import Family

# Its last layers have no norm; the tokens that are read are the sound's and one of its duration.
FAMILY = Family(
    denoiser="StableAudioDiTModel",
    prediction="v",
    noise_level=levels.scheduled_edm,
    lora_scale="",
    tap="proj_out",
    unbatched=frozenset({"timestep", "rotary_embedding"}),
)
