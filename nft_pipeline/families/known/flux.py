"""FLUX.1."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import JOINT_ATTENTION, Family
from ..layer_names import LayerNames

FAMILY = Family(
    denoiser="FluxTransformer2DModel",
    noise_level=levels.flow(),
    lora_scale="joint_attention_kwargs",
    lora_targets=JOINT_ATTENTION,
    cfg="two_calls",
    unbatched=frozenset({"img_ids", "txt_ids"}),
    comfyui_tap="diffusion_model.final_layer",
    layer_names=LayerNames(kohya_prefix="lora_transformer_", pipeline="FluxPipeline", spelling="kohya"),
    workflows={"": "3-flux1-dev"},
)
