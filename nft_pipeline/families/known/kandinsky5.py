"""Kandinsky 5, which draws pictures and videos."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import Family

FAMILY = Family(
    denoiser="Kandinsky5Transformer3DModel",
    noise_level=levels.flow(1000),
    lora_scale="",
    lora_targets=("to_query", "to_key", "to_value"),
    tap="out_layer",
    cfg="two_calls",
    unbatched=frozenset({"visual_rope_pos", "text_rope_pos", "sparse_params"}),
)
