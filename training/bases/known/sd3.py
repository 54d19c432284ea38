"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..base import Conditions, TrainBase


class SD3Base(TrainBase):
    """Stable Diffusion 3 and 3.5."""

    pipeline_class = "StableDiffusion3Pipeline"
    model = "Stable Diffusion 3 and 3.5"
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")

    def _encode(self, prompts: list[str]) -> Conditions:
        text, _, pooled, _ = self._encode_prompt(
            prompts, prompt_2=None, prompt_3=None, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"text": text, "pooled": pooled}

    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
        """x_t as it is, the timestep 1000 t, text tokens and pooled text."""
        return {
            "hidden_states": x_t,
            "timestep": 1000 * t,
            "encoder_hidden_states": conditions["text"],
            "pooled_projections": conditions["pooled"],
        }

    def call_conditions(self, conditions: Conditions) -> dict[str, Any]:
        """Text tokens and pooled text."""
        return {"prompt_embeds": conditions["text"], "pooled_prompt_embeds": conditions["pooled"]}
