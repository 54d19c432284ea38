"""A base model as the trainer sees it: prompts to conditions, pictures to latents and back, one forward, sampling.

    conditions = base.encode_prompts(["a cat"])              {"text": (P, L, D), ...}, one row a prompt
    output = base.predict(x_t, t, rows_of(conditions, [0]))  raw output, of x_t's shape, as `base.prediction` says

Latents are scaled ones, (B, C, H, W), t is the noise level in [0, 1], and x_t = (1 - t) x_0 + t eps for every model:
what a family packs, rescales or calls timestep stays in here. The LoRA is on or off as the caller has switched it.

A family is a subclass of `TrainBase` with what is its own; `TRAINABLE` lists them by the pipeline's class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from nft_pipeline.families import Family, family_of
from nft_pipeline.noise_level import log_sigmas

from .noising import per_sample, vp_norm
from .precision import autocast

Conditions = dict[str, Tensor]
# Positions of a latent: 32 pictures of 8 x 8, which fit a CPU's cache (128 took twice as long each), one of 64 x 64.
DECODED_AT_ONCE = 2048


class TrainingError(ValueError):
    """Training cannot start or cannot go on."""


def rows_of(conditions: Conditions, index: Tensor | Sequence[int]) -> Conditions:
    """Some rows of conditions, in this order."""
    at = torch.as_tensor(index)
    return {name: value[at] for name, value in conditions.items()}


class TrainBase:
    """A diffusers pipeline for training; the flow models' part, families override what differs.

    Args:
        pipe: the pipeline, on its device.
        call: arguments of the pipeline's call, such as num_inference_steps, guidance_scale, height and width.
        dtype: forwards run under autocast to it; float32 is without.
    """

    extra_prompts: tuple[str, ...] = ()  # the names of encode_prompt's further prompts
    encoders: tuple[str, ...] = ("text_encoder",)
    has_cfg = True  # whether guidance_scale above 1 is classifier-free guidance, which needs the empty prompt

    def __init__(self, pipe: Any, call: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32) -> None:
        self.pipe, self.call, self.dtype = pipe, dict(call or {}), dtype
        component = "unet" if hasattr(pipe, "unet") else "transformer"
        self.denoiser: nn.Module = getattr(pipe, component)
        self.family: Family = family_of(self.denoiser)
        self.prediction = self.family.output(pipe.scheduler)
        pipe.set_progress_bar_config(disable=True)

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def settings(self) -> Any:
        """The denoiser's config."""
        return self.denoiser.config

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return int(self.settings.in_channels)

    @property
    def pixels_per_latent(self) -> int:
        return int(self.pipe.vae_scale_factor)

    @property
    def resolution(self) -> tuple[int, int]:
        """(height, width) in pixels of what a call samples."""
        size: Any = getattr(self.settings, "sample_size", None) or getattr(self.pipe, "default_sample_size", 64)
        edge = int(size) * self.pixels_per_latent
        return int(self.call.get("height") or edge), int(self.call.get("width") or edge)

    def latent_shape(self, count: int) -> tuple[int, int, int, int]:
        height, width = (edge // self.pixels_per_latent for edge in self.resolution)
        return count, self.channels, height, width

    # Prompts and pictures: before the optimiser loop, never inside.

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], batch: int = 64) -> Conditions:
        """Conditions on the CPU, one row a prompt, as a call without classifier-free guidance makes them."""
        parts = [self._encode(list(prompts[i : i + batch])) for i in range(0, len(prompts), batch)]
        return {name: torch.cat([part[name].float().cpu() for part in parts]) for name in parts[0]}

    def _encode(self, prompts: list[str]) -> Conditions:
        limits = {key: self.call[key] for key in ("max_sequence_length",) if key in self.call}
        more: dict[str, Any] = dict.fromkeys(self.extra_prompts)
        encoded = self.pipe.encode_prompt(
            prompt=prompts,
            device=self.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            **more,
            **limits,
        )
        return self._conditions(encoded)

    def _conditions(self, encoded: tuple[Any, ...]) -> Conditions:
        return {"text": encoded[0], "pooled": encoded[2]}

    def text(self, conditions: Conditions) -> Tensor:
        """The text tokens an alpha head may see, (B, L, D)."""
        return conditions["text"]

    @torch.no_grad()
    def encode_pictures(self, pictures: np.ndarray) -> Tensor:
        """uint8 pictures (B, H, W, 3) to scaled latents (B, C, h, w): the mode of the VAE's code."""
        vae = self.pipe.vae
        x = torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).to(vae.device, vae.dtype)
        code = vae.encode(x / 127.5 - 1).latent_dist.mode().float()
        return (code - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> np.ndarray:
        """Scaled latents (B, C, h, w) to uint8 pictures (B, H, W, 3)."""
        vae, pictures = self.pipe.vae, []
        for part in latents.split(max(1, DECODED_AT_ONCE // latents[0, 0].numel())):
            z = part.to(vae.device, vae.dtype) / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
            x = vae.decode(z, return_dict=False)[0].float()
            pictures.append(((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(pictures)

    def release(self, *parts: str) -> None:
        """Let parts of the pipeline go, to free their memory: the text encoders if none is named."""
        for name in parts or self.encoders:
            if getattr(self.pipe, name, None) is not None:
                self.pipe.register_modules(**{name: None})
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # The forward.

    def noise_range(self) -> tuple[float, float]:
        """Lowest and highest noise level the model knows; training draws t between them."""
        return 0.0, 1.0

    def predict(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """The raw output, with the family's sign, at x_t (B, C, H, W) and t (B,); everything moves to the device."""
        x_t, t = x_t.to(self.device), t.to(self.device)
        with autocast(self.device, self.dtype):
            inputs = self.inputs(x_t, t, {name: value.to(self.device) for name, value in conditions.items()})
            output = self.denoiser(**inputs, return_dict=False)[0]
        return self.family.sign * self.unpack(output, x_t)

    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
        """What the denoiser's forward is called with."""
        return {
            "hidden_states": x_t,
            "timestep": 1000 * t,
            "encoder_hidden_states": conditions["text"],
            "pooled_projections": conditions["pooled"],
        }

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        """The output in the shape of x_t."""
        return output

    # Sampling.

    @torch.no_grad()
    def sample(
        self, conditions: Conditions, prompt: Tensor, *, seed: int, batch: int, label: str = "", empty: Any = None
    ) -> Tensor:
        """Samples of the pipeline, one for each entry of `prompt` (rows of the conditions): latents, fp32, on the CPU.

        The noise of a sample depends on the seed and its place only, so two calls with one seed are comparable picture
        by picture. `empty` are the conditions of the empty prompt, needed with classifier-free guidance.
        """
        noise = torch.randn(self.latent_shape(len(prompt)), generator=torch.Generator().manual_seed(seed))
        parts = torch.arange(len(prompt)).split(batch)
        bar = tqdm(parts, desc=label, unit=f"x{batch}", disable=not label)
        return torch.cat([self.sample_batch(rows_of(conditions, prompt[rows]), noise[rows], empty) for rows in bar])

    @torch.no_grad()
    def sample_batch(self, conditions: Conditions, noise: Tensor, empty: Conditions | None = None) -> Tensor:
        """Latents (B, C, H, W) of one call from this noise."""
        like: dict[str, Any] = {"device": self.device, "dtype": next(self.denoiser.parameters()).dtype}
        given = self.call_conditions({name: value.to(**like) for name, value in conditions.items()})
        if empty is not None:
            wide = {name: value.expand(len(noise), *value.shape[1:]).to(**like) for name, value in empty.items()}
            given |= {f"negative_{name}": value for name, value in self.call_conditions(wide).items()}
        call = {**self.call, **dict(zip(("height", "width"), self.resolution, strict=True))}
        with autocast(self.device, self.dtype):
            out = self.pipe(**given, latents=self.pack(noise.to(**like)), output_type="latent", **call)
        return self.unpack(out.images, noise).float().cpu()

    def call_conditions(self, conditions: Conditions) -> dict[str, Any]:
        """The pipeline call's arguments for conditions."""
        return {"prompt_embeds": conditions["text"], "pooled_prompt_embeds": conditions["pooled"]}

    def pack(self, latents: Tensor) -> Tensor:
        return latents


class SD3Base(TrainBase):
    """Stable Diffusion 3 and 3.5."""

    extra_prompts = ("prompt_2", "prompt_3")
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")


class SDBase(TrainBase):
    """Stable Diffusion 1 and 2: noise or VP velocity, at an index into the scheduler's table, of x_t / n."""

    def __init__(self, pipe: Any, call: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(pipe, call, dtype)
        # Linear between two indices, as nft_pipeline.noise_level reads it.
        self._log_sigma = log_sigmas(pipe.scheduler.alphas_cumprod.double())

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

    def _conditions(self, encoded: tuple[Any, ...]) -> Conditions:
        return {"text": encoded[0]}

    def call_conditions(self, conditions: Conditions) -> dict[str, Any]:
        return {"prompt_embeds": conditions["text"]}


class SDXLBase(SDBase):
    """Stable Diffusion XL: as 1, with pooled text and the picture's size."""

    encoders = ("text_encoder", "text_encoder_2")

    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
        height, width = (edge * self.pixels_per_latent for edge in x_t.shape[-2:])
        sizes = torch.tensor([height, width, 0, 0, height, width], device=x_t.device, dtype=conditions["pooled"].dtype)
        added = {"text_embeds": conditions["pooled"], "time_ids": sizes.expand(len(x_t), -1)}
        return {**super().inputs(x_t, t, conditions), "added_cond_kwargs": added}

    def _conditions(self, encoded: tuple[Any, ...]) -> Conditions:
        return {"text": encoded[0], "pooled": encoded[2]}

    def call_conditions(self, conditions: Conditions) -> dict[str, Any]:
        return TrainBase.call_conditions(self, conditions)


class FluxBase(TrainBase):
    """FLUX.1: latents packed two by two into tokens. guidance_scale is the distilled model's own input, no CFG."""

    has_cfg = False
    encoders = ("text_encoder", "text_encoder_2")
    extra_prompts = ("prompt_2",)

    @property
    def channels(self) -> int:
        return super().channels // 4

    @property
    def resolution(self) -> tuple[int, int]:
        edge = int(self.pipe.default_sample_size) * self.pixels_per_latent
        return int(self.call.get("height") or edge), int(self.call.get("width") or edge)

    def latent_shape(self, count: int) -> tuple[int, int, int, int]:
        # As the pipeline does: latent edges are even.
        height, width = (2 * (edge // (2 * self.pixels_per_latent)) for edge in self.resolution)
        return count, self.channels, height, width

    def _encode(self, prompts: list[str]) -> Conditions:
        limits = {key: self.call[key] for key in ("max_sequence_length",) if key in self.call}
        text, pooled, _ = self.pipe.encode_prompt(prompt=prompts, prompt_2=None, device=self.device, **limits)
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


TRAINABLE: dict[str, type[TrainBase]] = {
    "StableDiffusion3Pipeline": SD3Base,
    "StableDiffusionPipeline": SDBase,
    "StableDiffusionXLPipeline": SDXLBase,
    "FluxPipeline": FluxBase,
}


def train_base(pipe: Any, call: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32) -> TrainBase:
    """The trainer's view of a pipeline; of a guided one too, for sampling from it.

    Raises:
        TrainingError: a pipeline that cannot be trained on, which may still be guided.
    """
    name = type(pipe).__name__
    known = [kind.__name__ for kind in type(pipe).__mro__ if kind.__name__ in TRAINABLE]
    if not known:
        raise TrainingError(
            f"the base model is a {name}; the trainer supports {', '.join(TRAINABLE)} so far. Set base_model to one of "
            "these; adapters trained elsewhere for other families can be used for sampling."
        )
    return TRAINABLE[known[0]](pipe, call, dtype)
