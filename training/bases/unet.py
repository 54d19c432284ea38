"""Models with a UNet as the trainer sees them: Stable Diffusion 1 and 2, and XL.

They predict noise or VP velocity, at an index into the scheduler's table, of the variance-preserving x_t / n.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nft_pipeline.families.noise_level import log_sigmas

from .base import Conditions, TrainBase
from .noising import per_sample, vp_norm


class SDBase(TrainBase):
    """Stable Diffusion 1 and 2."""

    def prepare(self) -> None:
        # Linear between two indices, as nft_pipeline.families.noise_level reads it.
        self._log_sigma = log_sigmas(self.pipe.scheduler.alphas_cumprod.double())

    def noise_range(self) -> tuple[float, float]:
        low, high = torch.sigmoid(self._log_sigma[[0, -1]]).tolist()
        return low, high

    def timestep(self, t: Tensor) -> Tensor:
        """The index, fractional between two of them, whose noise level is t."""
        wanted, table = torch.logit(t.double().cpu()), self._log_sigma
        above = torch.searchsorted(table, wanted.contiguous()).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        index = above - 1 + ((wanted - low) / (high - low)).clamp(0, 1)
        return index.float().to(t.device)

    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
        return {
            "sample": x_t / vp_norm(per_sample(t, x_t)),
            "timestep": self.timestep(t),
            "encoder_hidden_states": conditions["text"],
        }

    def _encode(self, prompts: list[str]) -> Conditions:
        given = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        return {"text": self._encode_prompt(prompts, **given)[0]}


class SDXLBase(SDBase):
    """Stable Diffusion XL: as 1, with pooled text and the picture's size."""

    encoders = ("text_encoder", "text_encoder_2")

    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
        height, width = (edge * self.pixels_per_latent for edge in x_t.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], device=x_t.device, dtype=conditions["pooled"].dtype)
        added = {"text_embeds": conditions["pooled"], "time_ids": sizes.expand(len(x_t), -1)}
        return {**super().inputs(x_t, t, conditions), "added_cond_kwargs": added}

    def _encode(self, prompts: list[str]) -> Conditions:
        text, _, pooled, _ = self._encode_prompt(prompts, num_images_per_prompt=1, do_classifier_free_guidance=False)
        return {"text": text, "pooled": pooled}

    def call_conditions(self, conditions: Conditions) -> dict[str, Any]:
        return {"prompt_embeds": conditions["text"], "pooled_prompt_embeds": conditions["pooled"]}
