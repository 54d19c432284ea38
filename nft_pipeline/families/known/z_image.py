"""Z-Image: lists of one picture and one text per row, and time that runs from noise to picture."""

from __future__ import annotations

from typing import Any

from .. import noise_level as levels
from ..family import Family
from ..forward_call import Inputs


def _is_truncated(inputs: Inputs, pipe: Any) -> bool:
    """cfg_truncation: there is no classifier-free guidance where the model's own time, 1 - t, is above it."""
    limit = getattr(pipe, "_cfg_truncation", None)
    return limit is not None and float(limit) <= 1 and inputs["t"].max().item() > float(limit)


FAMILY = Family(
    denoiser="ZImageTransformer2DModel",
    noise_level=levels.reversed_flow(state="x", timestep="t"),
    state="x",
    text="cap_feats",
    lora_scale="joint_attention_kwargs",
    tap="all_final_layer.2-1",
    sign=-1,
    cfg="conditional_first",
    skips_cfg=_is_truncated,
    row_lists=frozenset({"x", "cap_feats", "siglip_feats", "image_noise_mask"}),
    comfyui_tap="diffusion_model.final_layer",
    workflows={"": "5-z-image-turbo"},
)
