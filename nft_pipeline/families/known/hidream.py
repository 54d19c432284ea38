"""HiDream-I1."""

from __future__ import annotations

from .. import noise_level as levels
from ..family import Family

FAMILY = Family(
    denoiser="HiDreamImageTransformer2DModel",
    noise_level=levels.flow(1000, timestep="timesteps"),
    text="encoder_hidden_states_t5",
    lora_targets=("to_q", "to_k", "to_v", "to_out", "to_q_t", "to_k_t", "to_v_t", "to_out_t"),
    tap="final_layer",
    sign=-1,
    row_lists=frozenset({"img_sizes"}),
    row_dims={"encoder_hidden_states_llama3": 1},
)
