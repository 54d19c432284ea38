"""Stable Diffusion 1 and 2.

They predict noise or VP velocity, at an index into the scheduler's table, of the variance-preserving x_t / n with
n = sqrt((1 - t)^2 + t^2).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nft_pipeline.families.noise_level import log_sigmas

from ..base import Conditions, TrainBase
from ..noising import per_sample, vp_norm


class SDBase(TrainBase):
    """Stable Diffusion 1 and 2."""

    pipeline_class = "StableDiffusionPipeline"
    model = "Stable Diffusion 1 and 2"
    note = (
        "These models predict noise or velocity. They are trained with the same objectives, exactly (M9). Without "
        "guidance they draw poorly: where a reward cannot judge their pictures, set `guidance_scale`."
    )

    def prepare(self) -> None:
        """Reads the scheduler's table of noise levels."""
        # Linear between two indices, as nft_pipeline.families.noise_level reads it.
        self._log_sigma = log_sigmas(self.pipe.scheduler.alphas_cumprod.double())

    def noise_range(self) -> tuple[float, float]:
        """The noise levels at both ends of the scheduler's table."""
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
        """The variance-preserving x_t / n at the table's index for t."""
        return {
            "sample": x_t / vp_norm(per_sample(t, x_t)),
            "timestep": self.timestep(t),
            "encoder_hidden_states": conditions["text"],
        }

    def _encode(self, prompts: list[str]) -> Conditions:
        given = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        return {"text": self._encode_prompt(prompts, **given)[0]}
