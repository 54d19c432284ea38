"""Wan."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from ...errors import TrainingError
from ..base import Conditions
from ..frames import FramesBase


class WanBase(FramesBase):
    """Wan, text to video: num_frames of a call, 1 for pictures. Rewards see the middle frame.

    Raises:
        TrainingError: Wan 2.2 with two transformers, one for each half of the noise levels.
    """

    pipeline_class = "WanPipeline"
    model = "Wan, with one transformer"
    note = (
        "With `num_frames: 1` (the default) it draws pictures. Of longer videos the rewards see the middle "
        "frame. A folder holds pictures."
    )
    has_frames = True
    patch = 2
    default_resolution = (480, 832)
    call_defaults: ClassVar = {"num_frames": 1}

    def prepare(self) -> None:
        """Refuses a model with two transformers."""
        if getattr(self.pipe, "transformer_2", None) is not None:
            raise TrainingError(
                "the base model is a Wan with two transformers, one for high and one for low noise; the trainer knows "
                "those with one. Set base_model to Wan 2.1, or to Wan 2.2 with 5 B parameters"
            )

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along an edge of a frame that one latent position stands for."""
        return int(self.pipe.vae_scale_factor_spatial)

    def latent_shape(self, count: int) -> tuple[int, ...]:
        """(count, channels, frames, height, width), with as many latent frames as `num_frames` needs."""
        count, channels, height, width = super().latent_shape(count)
        frames = (int(self.call["num_frames"]) - 1) // int(self.pipe.vae_scale_factor_temporal) + 1
        return count, channels, frames, height, width

    def _encode(self, prompts: list[str]) -> Conditions:
        return {"text": self._encode_prompt(prompts, do_classifier_free_guidance=False)[0]}

    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
        """x_t with its frames; the timestep 1000 t, one per token where the pipeline expands it."""
        timestep = 1000 * t
        if self.pipe.config.expand_timesteps:  # a time for each token, all the same without a given picture
            timestep = timestep[:, None].expand(-1, math.prod(x_t.shape[2:]) // 4)
        return {"hidden_states": x_t, "timestep": timestep, "encoder_hidden_states": conditions["text"]}
