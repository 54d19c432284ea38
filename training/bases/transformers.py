"""Flow models with a transformer as the trainer sees them: Stable Diffusion 3, FLUX.1 and 2, Z-Image, Sana.

Each class says what its pipeline does between a prompt, a latent and a noise level t and the transformer's forward.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from .base import Conditions, TrainBase


class SD3Base(TrainBase):
    """Stable Diffusion 3 and 3.5."""

    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")

    def _encode(self, prompts: list[str]) -> Conditions:
        text, _, pooled, _ = self._encode_prompt(
            prompts, prompt_2=None, prompt_3=None, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"text": text, "pooled": pooled}

    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
        return {
            "hidden_states": x_t,
            "timestep": 1000 * t,
            "encoder_hidden_states": conditions["text"],
            "pooled_projections": conditions["pooled"],
        }

    def call_conditions(self, conditions: Conditions) -> dict[str, Any]:
        return {"prompt_embeds": conditions["text"], "pooled_prompt_embeds": conditions["pooled"]}


class FluxBase(TrainBase):
    """FLUX.1: latents packed two by two into tokens. guidance_scale is the distilled model's own input, no CFG."""

    has_cfg = False
    patch = 2
    encoders = ("text_encoder", "text_encoder_2")

    @property
    def channels(self) -> int:
        return super().channels // 4

    def _encode(self, prompts: list[str]) -> Conditions:
        text, pooled, _ = self._encode_prompt(prompts, prompt_2=None)
        return {"text": text, "pooled": pooled}

    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
        text, (height, width) = conditions["text"], x_t.shape[-2:]
        given = {
            "hidden_states": self.pack(x_t),
            "timestep": t,
            "encoder_hidden_states": text,
            "pooled_projections": conditions["pooled"],
            "txt_ids": torch.zeros(text.shape[1], 3, device=x_t.device),
            "img_ids": self.pipe._prepare_latent_image_ids(1, height // 2, width // 2, x_t.device, torch.float32),
        }
        if self.settings.guidance_embeds:
            given["guidance"] = torch.full_like(t, float(self.call.get("guidance_scale", 3.5)))
        return given

    def pack(self, latents: Tensor) -> Tensor:
        return self.pipe._pack_latents(latents, *latents.shape)

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        height, width = (edge * self.pixels_per_latent for edge in x_t.shape[-2:])
        return self.pipe._unpack_latents(output, height, width, self.pixels_per_latent)

    def call_conditions(self, conditions: Conditions) -> dict[str, Any]:
        return {"prompt_embeds": conditions["text"], "pooled_prompt_embeds": conditions["pooled"]}

    def start(self, noise: Tensor) -> Tensor:
        return self.pack(noise)


class Flux2Base(TrainBase):
    """FLUX.2: a latent position is two by two of the VAE's, normalised by its batch norm; a token is one position.

    guidance_scale is the distilled model's own input, no CFG.
    """

    has_cfg = False

    @property
    def pixels_per_latent(self) -> int:
        return 2 * super().pixels_per_latent

    def _encode(self, prompts: list[str]) -> Conditions:
        return {"text": self._encode_prompt(prompts)[0]}

    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
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
        return self.pipe._pack_latents(latents)

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        return output.transpose(1, 2).unflatten(2, x_t.shape[-2:])

    def encode_vae(self, x: Tensor) -> Tensor:
        return self._scaled(self.pipe.vae.encode(x).latent_dist.mode().float())

    def _scaled(self, code: Tensor) -> Tensor:
        mean, std = self._norm()
        return (self.pipe._patchify_latents(code) - mean) / std

    def decode_vae(self, latents: Tensor) -> Tensor:
        mean, std = self._norm()
        code = self.pipe._unpatchify_latents(latents * std.to(latents) + mean.to(latents))
        return self.pipe.vae.decode(code, return_dict=False)[0]

    def _norm(self) -> tuple[Tensor, Tensor]:
        vae = self.pipe.vae
        mean, variance = (value.float().view(1, -1, 1, 1) for value in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (variance + vae.config.batch_norm_eps).sqrt()


class Flux2KleinBase(Flux2Base):
    """FLUX.2 klein: no guidance input; the base models use CFG, the step-distilled ones ignore it."""

    @property
    def has_cfg(self) -> bool:  # type: ignore[override]
        return not self.pipe.config.is_distilled

    def _guidance(self, t: Tensor) -> None:
        return None

    def finish(self, output: Tensor, noise: Tensor) -> Tensor:
        return self._scaled(output.float())  # this pipeline's latents are the VAE's own


class ZImageBase(TrainBase):
    """Z-Image: lists of one picture and one text of its own length a row; time runs from noise to picture.

    Its pipeline counts guidance from 0: pos + scale (pos - neg), which is CFG at scale + 1.
    """

    patch = 2
    default_resolution = (1024, 1024)

    def prepare(self) -> None:
        self.call["guidance_scale"] = max(0.0, self.guidance_scale - 1)

    def _encode(self, prompts: list[str]) -> Conditions:
        texts, _ = self._encode_prompt(prompts, do_classifier_free_guidance=False)
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "text": pad(texts, batch_first=True),
            "mask": pad([torch.ones(len(text)) for text in texts], batch_first=True),
        }

    def _texts(self, conditions: Conditions) -> list[Tensor]:
        return [text[mask.bool()] for text, mask in zip(conditions["text"], conditions["mask"], strict=True)]

    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
        return {"x": self.pack(x_t), "t": 1 - t, "cap_feats": self._texts(conditions)}

    def pack(self, latents: Tensor) -> list[Tensor]:
        return list(latents.unsqueeze(2).unbind(0))

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        return output.squeeze(2)

    def finish(self, output: Tensor, noise: Tensor) -> Tensor:
        return output

    def call_conditions(self, conditions: Conditions) -> dict[str, Any]:
        return {"prompt_embeds": self._texts(conditions)}


class SanaBase(TrainBase):
    """Sana: text with a mask; the prompt goes to the text encoder behind the pipeline's own instruction."""

    def prepare(self) -> None:
        # Sizes are the run's own; binned ones would be scaled back after the VAE, which training does not see.
        self.call["use_resolution_binning"] = False
        self.call["negative_prompt"] = None  # its default is a text, which may not stand beside embeddings

    def _encode(self, prompts: list[str]) -> Conditions:
        stock = inspect.signature(type(self.pipe).__call__).parameters["complex_human_instruction"].default
        return self._instructed(prompts, self.call.get("complex_human_instruction", stock))

    def _encode_empty(self) -> Conditions:
        return {name: value.float().cpu() for name, value in self._instructed([""], None).items()}

    def _instructed(self, prompts: list[str], instruction: list[str] | None) -> Conditions:
        given = {"do_classifier_free_guidance": False, "complex_human_instruction": instruction}
        text, mask, _, _ = self._encode_prompt(prompts, **given)
        return {"text": text, "mask": mask}

    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
        return {
            "hidden_states": x_t,
            "encoder_hidden_states": conditions["text"],
            "encoder_attention_mask": conditions["mask"].long(),
            "timestep": 1000 * t * self.settings.timestep_scale,
        }

    def encode_vae(self, x: Tensor) -> Tensor:
        vae = self.pipe.vae
        return vae.encode(x, return_dict=False)[0].float() * vae.config.scaling_factor

    def call_conditions(self, conditions: Conditions) -> dict[str, Any]:
        return {"prompt_embeds": conditions["text"], "prompt_attention_mask": conditions["mask"].long()}
