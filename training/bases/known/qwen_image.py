"""Qwen-Image, which draws one frame of a video."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base import Conditions
from ..frames import FramesBase


class QwenImageBase(FramesBase):
    """Qwen-Image: latents packed two by two into tokens; texts of different lengths with a mask.

    guidance_scale is CFG, which its pipeline calls true_cfg_scale.
    """

    pipeline_class = "QwenImagePipeline"
    model = "Qwen-Image"
    note = "`guidance_scale` is what its pipeline calls true_cfg_scale."
    patch = 2

    def prepare(self) -> None:
        """Calls its guidance scale true_cfg_scale, as the pipeline does."""
        self.call.pop("guidance_scale", None)
        self.call["true_cfg_scale"] = self.guidance_scale

    @property
    def channels(self) -> int:
        """Channels of a latent before four positions are packed into one token."""
        return super().channels // 4

    def _encode(self, prompts: list[str]) -> Conditions:
        text, mask = self._encode_prompt(prompts)
        return {"text": text, "mask": torch.ones(text.shape[:2]) if mask is None else mask}

    def _texts(self, conditions: Conditions) -> tuple[Tensor, Tensor | None]:
        """Texts and mask cut to the longest of the rows, as the pipeline pads them; no mask where all are as long."""
        mask = conditions["mask"].long()
        longest = int(mask.sum(1).max())
        mask = mask[:, :longest]
        return conditions["text"][:, :longest], None if mask.all() else mask

    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
        """Packed tokens, texts cut to the longest with their mask, and each picture's size in tokens."""
        (text, mask), (height, width) = self._texts(conditions), x_t.shape[-2:]
        return {
            "hidden_states": self.pack(x_t),
            "timestep": t,
            "encoder_hidden_states": text,
            "encoder_hidden_states_mask": mask,
            "img_shapes": [[(1, height // 2, width // 2)]] * len(x_t),
        }

    def pack(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as tokens (B, h w / 4, 4 C)."""
        return self.pipe._pack_latents(latents, *latents.shape)

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        """Tokens back to (B, C, h, w)."""
        height, width = (edge * self.pixels_per_latent for edge in x_t.shape[-2:])
        return self.pipe._unpack_latents(output, height, width, self.pixels_per_latent).squeeze(2)

    def encode_vae(self, x: Tensor) -> Tensor:
        """Latents of one frame, without the frame axis."""
        return super().encode_vae(x).squeeze(2)

    def decode_vae(self, latents: Tensor) -> Tensor:
        """Pictures of latents to which the frame axis is added."""
        return super().decode_vae(latents.unsqueeze(2))

    def call_conditions(self, conditions: Conditions) -> dict[str, Any]:
        """Text tokens and their mask, cut to the longest text."""
        text, mask = self._texts(conditions)
        return {"prompt_embeds": text, "prompt_embeds_mask": mask}

    def start(self, noise: Tensor) -> Tensor:
        """Noise as tokens, which the pipeline's call takes."""
        return self.pack(noise)
