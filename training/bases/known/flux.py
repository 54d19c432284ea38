"""FLUX.1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base import Conditions, TrainBase


class FluxBase(TrainBase):
    """FLUX.1: latents packed two by two into tokens. guidance_scale is the distilled model's own input, no CFG."""

    pipeline_class = "FluxPipeline"
    model = "FLUX.1"
    note = "`guidance_scale` is an input of the distilled model itself."
    has_cfg = False
    patch = 2
    encoders = ("text_encoder", "text_encoder_2")

    @property
    def channels(self) -> int:
        """Channels of a latent before four positions are packed into one token."""
        return super().channels // 4

    def _encode(self, prompts: list[str]) -> Conditions:
        text, pooled, _ = self._encode_prompt(prompts, prompt_2=None)
        return {"text": text, "pooled": pooled}

    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
        """Packed tokens, ids of text and picture, and, where the model takes one, its own guidance input."""
        text, (height, width) = conditions["text"], x_t.shape[-2:]
        given = {
            "hidden_states": self.pack(x_t),
            "timestep": t,
            "encoder_hidden_states": text,
            "pooled_projections": conditions["pooled"],
            "txt_ids": torch.zeros(text.shape[1], 3, device=x_t.device),
            "img_ids": self.pipe._prepare_latent_image_ids(1, height // 2, width // 2, x_t.device, torch.float32),
        }
        if self.denoiser_config.guidance_embeds:
            given["guidance"] = torch.full_like(t, float(self.call.get("guidance_scale", 3.5)))
        return given

    def pack(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as tokens (B, h w / 4, 4 C)."""
        return self.pipe._pack_latents(latents, *latents.shape)

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        """Tokens back to (B, C, h, w)."""
        height, width = (edge * self.pixels_per_latent for edge in x_t.shape[-2:])
        return self.pipe._unpack_latents(output, height, width, self.pixels_per_latent)

    def call_conditions(self, conditions: Conditions) -> dict[str, Any]:
        """Text tokens and pooled text."""
        return {"prompt_embeds": conditions["text"], "pooled_prompt_embeds": conditions["pooled"]}

    def start(self, noise: Tensor) -> Tensor:
        """Noise as tokens, which the pipeline's call takes."""
        return self.pack(noise)
