"""FLUX.2, and FLUX.2 klein."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base import Conditions, TrainBase


class Flux2Base(TrainBase):
    """FLUX.2: a latent position is two by two of the VAE's, normalised by its batch norm; a token is one position.

    guidance_scale is the distilled model's own input, no CFG.
    """

    pipeline_class = "Flux2Pipeline"
    model = "FLUX.2"
    note = "`guidance_scale` is an input of the distilled model itself."
    has_cfg = False

    @property
    def pixels_per_latent(self) -> int:
        """Twice the VAE's, since two by two of its positions are one of the model's."""
        return 2 * super().pixels_per_latent

    def _encode(self, prompts: list[str]) -> Conditions:
        return {"text": self._encode_prompt(prompts)[0]}

    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
        """One token per position, ids of text and picture, and the guidance input."""
        return {
            "hidden_states": self.pack(x_t),
            "timestep": t,
            "guidance": self._guidance(t),
            "encoder_hidden_states": conditions["text"],
            "txt_ids": self.pipe._prepare_text_ids(conditions["text"]).to(x_t.device),
            "img_ids": self.pipe._prepare_latent_ids(x_t).to(x_t.device),
        }

    def _guidance(self, t: Tensor) -> Tensor | None:
        return torch.full_like(t, self.guidance_scale)

    def pack(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as tokens (B, h w, C)."""
        return self.pipe._pack_latents(latents)

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        """Tokens back to (B, C, h, w)."""
        return output.transpose(1, 2).unflatten(2, x_t.shape[-2:])

    def encode_vae(self, x: Tensor) -> Tensor:
        """Latents packed two by two and normalised by the VAE's batch norm."""
        return self._scaled(self.pipe.vae.encode(x).latent_dist.mode().float())

    def _scaled(self, code: Tensor) -> Tensor:
        mean, std = self._norm()
        return (self.pipe._patchify_latents(code) - mean) / std

    def decode_vae(self, latents: Tensor) -> Tensor:
        """The inverse of `encode_vae`: batch norm undone, positions unpacked, decoded."""
        mean, std = self._norm()
        code = self.pipe._unpatchify_latents(latents * std.to(latents) + mean.to(latents))
        return self.pipe.vae.decode(code, return_dict=False)[0]

    def _norm(self) -> tuple[Tensor, Tensor]:
        vae = self.pipe.vae
        mean, variance = (value.float().view(1, -1, 1, 1) for value in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (variance + vae.config.batch_norm_eps).sqrt()


class Flux2KleinBase(Flux2Base):
    """FLUX.2 klein: no guidance input; the base models use CFG, the step-distilled ones ignore it."""

    pipeline_class = "Flux2KleinPipeline"
    model = "FLUX.2 klein"
    note = "The base models have classifier-free guidance."

    @property
    def has_cfg(self) -> bool:  # type: ignore[override]
        """Whether it is a base model; step-distilled ones ignore classifier-free guidance."""
        return not self.pipe.config.is_distilled

    def _guidance(self, t: Tensor) -> None:
        return None

    def finish(self, output: Tensor, noise: Tensor) -> Tensor:
        """Latents of the VAE, as this pipeline returns them, normalised as the model sees them."""
        return self._scaled(output.float())  # this pipeline's latents are the VAE's own
