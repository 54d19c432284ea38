"""Stable Diffusion XL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base import Conditions
from .sd import SDBase


class SDXLBase(SDBase):
    """Stable Diffusion XL: as 1, with pooled text and the picture's size."""

    pipeline_class = "StableDiffusionXLPipeline"
    model = "Stable Diffusion XL"
    note = "It predicts noise or velocity, as Stable Diffusion 1 does."
    encoders = ("text_encoder", "text_encoder_2")

    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
        """As Stable Diffusion 1, with pooled text and the picture's size as additional conditions."""
        height, width = (edge * self.pixels_per_latent for edge in x_t.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], device=x_t.device, dtype=conditions["pooled"].dtype)
        added = {"text_embeds": conditions["pooled"], "time_ids": sizes.expand(len(x_t), -1)}
        return {**super().inputs(x_t, t, conditions), "added_cond_kwargs": added}

    def _encode(self, prompts: list[str]) -> Conditions:
        text, _, pooled, _ = self._encode_prompt(prompts, num_images_per_prompt=1, do_classifier_free_guidance=False)
        return {"text": text, "pooled": pooled}

    def call_conditions(self, conditions: Conditions) -> dict[str, Any]:
        """Text tokens and pooled text."""
        return {"prompt_embeds": conditions["text"], "pooled_prompt_embeds": conditions["pooled"]}
