"""Models over a VAE of video frames as the trainer sees them: what Qwen-Image, which draws one frame, and Wan share."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import TrainBase


class FramesBase(TrainBase):
    """A VAE whose code (B, C, T, h, w) is normalised channel by channel."""

    def encode_vae(self, x: Tensor) -> Tensor:
        """Pictures as one frame each: latents (B, C, 1, h, w), normalised channel by channel."""
        code = self.pipe.vae.encode(x.unsqueeze(2)).latent_dist.mode().float()
        mean, std = self._norm(code)
        return (code - mean) / std

    def decode_vae(self, latents: Tensor) -> Tensor:
        """The middle frame of each video, (B, 3, H, W)."""
        mean, std = self._norm(latents)
        frames = self.pipe.vae.decode(latents * std + mean, return_dict=False)[0]
        return frames[:, :, frames.shape[2] // 2]

    def _norm(self, like: Tensor) -> tuple[Tensor, Tensor]:
        config = self.pipe.vae.config
        mean, std = (torch.tensor(value).view(1, -1, 1, 1, 1) for value in (config.latents_mean, config.latents_std))
        return mean.to(like), std.to(like)
