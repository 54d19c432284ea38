"""Sana."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from ..base import Conditions, TrainBase


class SanaBase(TrainBase):
    """Sana: text with a mask; the pipeline's own instruction to the text encoder is put before the prompt."""

    pipeline_class = "SanaPipeline"
    model = "Sana"
    note = "The pipeline's own instruction to the text encoder is put before each prompt."

    def prepare(self) -> None:
        """Switches off what the pipeline would do to sizes and to the negative prompt."""
        # Sizes are the run's own; binned ones would be scaled back after the VAE, which training does not see.
        self.call["use_resolution_binning"] = False
        self.call["negative_prompt"] = None  # its default is a text, which may not stand beside embeddings

    def _encode(self, prompts: list[str]) -> Conditions:
        stock = inspect.signature(type(self.pipe).__call__).parameters["complex_human_instruction"].default
        return self._instructed(prompts, self.call.get("complex_human_instruction", stock))

    def _encode_empty(self) -> Conditions:
        return {name: value.float().cpu() for name, value in self._instructed([self.negative_prompt], None).items()}

    def _instructed(self, prompts: list[str], instruction: list[str] | None) -> Conditions:
        given = {"do_classifier_free_guidance": False, "complex_human_instruction": instruction}
        text, mask, _, _ = self._encode_prompt(prompts, **given)
        return {"text": text, "mask": mask}

    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
        """Text tokens with their mask; the timestep is 1000 t times the model's own scale."""
        return {
            "hidden_states": x_t,
            "encoder_hidden_states": conditions["text"],
            "encoder_attention_mask": conditions["mask"].long(),
            "timestep": 1000 * t * self.denoiser_config.timestep_scale,
        }

    def encode_vae(self, x: Tensor) -> Tensor:
        """The code of an autoencoder without a distribution, scaled."""
        vae = self.pipe.vae
        return vae.encode(x, return_dict=False)[0].float() * vae.config.scaling_factor

    def call_conditions(self, conditions: Conditions) -> dict[str, Any]:
        """Text tokens and their mask."""
        return {"prompt_embeds": conditions["text"], "prompt_attention_mask": conditions["mask"].long()}
