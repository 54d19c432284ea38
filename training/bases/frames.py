"""Flow models over a VAE of video frames as the trainer sees them: Qwen-Image, which draws one frame, and Wan."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import TrainingError
from .base import Conditions, TrainBase


class FramesBase(TrainBase):
    """What they share: a VAE whose code (B, C, T, h, w) is normalised channel by channel."""

    def encode_vae(self, x: Tensor) -> Tensor:
        code = self.pipe.vae.encode(x.unsqueeze(2)).latent_dist.mode().float()
        mean, std = self._norm(code)
        return (code - mean) / std

    def decode_vae(self, latents: Tensor) -> Tensor:
        mean, std = self._norm(latents)
        frames = self.pipe.vae.decode(latents * std + mean, return_dict=False)[0]
        return frames[:, :, frames.shape[2] // 2]

    def _norm(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.pipe.vae.config
        mean, std = (torch.tensor(value).view(1, -1, 1, 1, 1) for value in (config.latents_mean, config.latents_std))
        return mean.to(like), std.to(like)


class QwenImageBase(FramesBase):
    """Qwen-Image: latents packed two by two into tokens; texts of different lengths with a mask.

    guidance_scale is CFG, which its pipeline calls true_cfg_scale.
    """

    patch = 2

    def prepare(self) -> None:
        self.call.pop("guidance_scale", None)
        self.call["true_cfg_scale"] = self.guidance_scale

    @property
    def channels(self) -> int:
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
        (text, mask), (height, width) = self._texts(conditions), x_t.shape[-2:]
        return {
            "hidden_states": self.pack(x_t),
            "timestep": t,
            "encoder_hidden_states": text,
            "encoder_hidden_states_mask": mask,
            "img_shapes": [[(1, height // 2, width // 2)]] * len(x_t),
        }

    def pack(self, latents: Tensor) -> Tensor:
        return self.pipe._pack_latents(latents, *latents.shape)

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        height, width = (edge * self.pixels_per_latent for edge in x_t.shape[-2:])
        return self.pipe._unpack_latents(output, height, width, self.pixels_per_latent).squeeze(2)

    def encode_vae(self, x: Tensor) -> Tensor:
        return super().encode_vae(x).squeeze(2)

    def decode_vae(self, latents: Tensor) -> Tensor:
        return super().decode_vae(latents.unsqueeze(2))

    def call_conditions(self, conditions: Conditions) -> dict[str, Any]:
        text, mask = self._texts(conditions)
        return {"prompt_embeds": text, "prompt_embeds_mask": mask}

    def start(self, noise: Tensor) -> Tensor:
        return self.pack(noise)


class WanBase(FramesBase):
    """Wan, text to video: num_frames of a call, 1 for pictures. Rewards see the middle frame.

    Raises:
        TrainingError: Wan 2.2 with two transformers, one for each half of the noise levels.
    """

    has_frames = True
    patch = 2
    default_resolution = (480, 832)
    call_defaults: ClassVar = {"num_frames": 1}

    def prepare(self) -> None:
        if getattr(self.pipe, "transformer_2", None) is not None:
            raise TrainingError(
                "the base model is a Wan with two transformers, one for high and one for low noise; the trainer knows "
                "those with one. Set base_model to Wan 2.1, or to Wan 2.2 with 5 B parameters"
            )

    @property
    def pixels_per_latent(self) -> int:
        return int(self.pipe.vae_scale_factor_spatial)

    def latent_shape(self, count: int) -> tuple[int, ...]:
        count, channels, height, width = super().latent_shape(count)
        frames = (int(self.call["num_frames"]) - 1) // int(self.pipe.vae_scale_factor_temporal) + 1
        return count, channels, frames, height, width

    def _encode(self, prompts: list[str]) -> Conditions:
        return {"text": self._encode_prompt(prompts, do_classifier_free_guidance=False)[0]}

    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
        timestep = 1000 * t
        if self.pipe.config.expand_timesteps:  # a time for each token, all the same without a given picture
            timestep = timestep[:, None].expand(-1, math.prod(x_t.shape[2:]) // 4)
        return {"hidden_states": x_t, "timestep": timestep, "encoder_hidden_states": conditions["text"]}
