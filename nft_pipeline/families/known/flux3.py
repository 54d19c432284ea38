"""FLUX.3, which diffusers has as a modular pipeline."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import ATTENTION, Family

FAMILY = Family(
    denoiser="Flux3Transformer2DModel",
    noise_level=levels.flow(),
    lora_targets=(*ATTENTION, "to_qkv_mlp_proj"),
    cfg="two_calls",
    unbatched=frozenset({"img_ids", "txt_ids", "image_cond_ids"}),
)
