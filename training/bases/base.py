"""A base model as the trainer sees it: prompts to conditions, pictures to latents and back, one forward, sampling.

    conditions = base.encode_prompts(["a cat"])              {"text": (P, L, D), ...}, one row per prompt
    output = base.predict(x_t, t, rows_of(conditions, [0]))  raw output, of x_t's shape, as `base.prediction` says

Latents are scaled ones, (B, C, H, W) or of videos (B, C, T, H, W), t is the noise level in [0, 1], and
x_t = (1 - t) x_0 + t eps for every model: how a family packs and rescales latents and counts timesteps stays in
here. The LoRA is on or off as the caller has switched it.

A family is a subclass of `TrainBase` with what is its own, in a file of the room `known`; registry.py finds them there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from nft_pipeline.families.family import Family
from nft_pipeline.families.forward_call import as_rows
from nft_pipeline.families.registry import family_of

from ..devices.fits import Fits
from ..devices.placement import Placement
from ..devices.precision import autocast
from ..errors import TrainingError

Conditions = dict[str, Tensor]
# Positions of latents that the VAE takes at once: 32 pictures of 8 x 8, which fit a CPU's cache (128 took twice as long
# each), one of 64 x 64. The VAE is in fp32, and of 1024 x 1024 pixels one picture takes 3 GiB already.
VAE_AT_ONCE = 2048
PROMPTS_AT_ONCE = 8  # of texts that fill all tokens; with 64 a T5 or a Qwen3 takes as much again as its weights


def rows_of(conditions: Conditions, index: Tensor | Sequence[int]) -> Conditions:
    """Some rows of conditions, in this order."""
    at = torch.as_tensor(index)
    return {name: value[at] for name, value in conditions.items()}


class TrainBase(ABC):
    """A diffusers pipeline for training; what most families have in common, each overrides what differs.

    Args:
        pipe: the pipeline.
        call: arguments of the pipeline's call, such as num_inference_steps, guidance_scale, negative_prompt, height and
            width. For every family a guidance_scale of 1 means no classifier-free guidance.
        dtype: the type to which forwards are autocast; float32 means no autocast.
        device: the run's device, to which the pipeline's parts move when they are needed; default: the denoiser's.

    Raises:
        TrainingError: the call asks for what the family lacks, or the pipeline has parts that cannot be trained.
    """

    pipeline_class: ClassVar[str]  # the class name of the pipeline in diffusers
    model: ClassVar[str]  # what people call the model, for docs/training.md
    note: ClassVar[str] = ""  # what a person who trains on it has to know, for the same page
    encoders: tuple[str, ...] = ("text_encoder",)
    has_cfg = True  # whether guidance_scale above 1 is classifier-free guidance, which needs the negative prompt
    has_frames = False  # whether latents are of videos, (B, C, T, H, W)
    patch = 1  # edges of a latent are multiples of it
    call_defaults: ClassVar[Mapping[str, Any]] = {}  # arguments of the call, unless they are given
    default_resolution: tuple[int, int] | None = None  # of the pipeline's call, where no size stands in the model

    def __init__(
        self,
        pipe: Any,
        call: dict[str, Any] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        self.pipe, self.call, self.dtype = pipe, {**self.call_defaults, **(call or {})}, dtype
        component = "unet" if hasattr(pipe, "unet") else "transformer"
        self.denoiser: nn.Module = getattr(pipe, component)
        self.device = device or next(self.denoiser.parameters()).device
        self.placement, self.fits = Placement(self.denoiser, self.device), Fits(self.device)
        self.family: Family = family_of(self.denoiser)
        self.prediction = self.family.output(pipe.scheduler)
        self.guidance_scale = float(self.call.get("guidance_scale", 1.0))
        # Its conditions are given to the call, which takes no text beside them.
        self.negative_prompt = str(self.call.pop("negative_prompt", None) or "")
        if "num_frames" in self.call and not self.has_frames:
            raise TrainingError(
                f"num_frames is {self.call['num_frames']}, and a {type(pipe).__name__} draws single pictures. Leave "
                "num_frames out"
            )
        pipe.set_progress_bar_config(disable=True)
        self.prepare()

    def prepare(self) -> None:  # noqa: B027  a family may have nothing to prepare
        """What a family does with its pipeline and its call as it is made; may raise TrainingError."""

    @property
    def stock_guidance_scale(self) -> float:
        """What `guidance_scale` is for the pipeline's own call."""
        return float(self.call.get("guidance_scale", self.guidance_scale))

    @property
    def denoiser_config(self) -> Any:
        """The denoiser's config of diffusers."""
        return self.denoiser.config

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return int(self.denoiser_config.in_channels)

    @property
    def pixels_per_latent(self) -> int:
        """Pixels along an edge that one latent position stands for."""
        return int(self.pipe.vae_scale_factor)

    @property
    def resolution(self) -> tuple[int, int]:
        """(height, width) in pixels of what a call samples."""
        height, width = self.default_resolution or (self._edge, self._edge)
        return int(self.call.get("height") or height), int(self.call.get("width") or width)

    @property
    def _edge(self) -> int:
        size: Any = getattr(self.denoiser_config, "sample_size", None) or getattr(self.pipe, "default_sample_size", 64)
        return int(size) * int(self.pipe.vae_scale_factor)

    def latent_shape(self, count: int) -> tuple[int, ...]:
        """The shape of `count` samples' latents: (count, channels, height, width), with a frame axis for videos."""
        pixels = self.patch * self.pixels_per_latent
        height, width = (self.patch * (edge // pixels) for edge in self.resolution)
        return count, self.channels, height, width

    # Prompts and pictures: before the optimiser loop, never inside.

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], batch: int = PROMPTS_AT_ONCE) -> Conditions:
        """Conditions on the CPU, one row per prompt, as a call without classifier-free guidance makes them.

        Texts of different lengths are padded with zeros at their end.
        """
        with self.placement.instead_of_denoiser(*self._encoders()):
            parts = [
                part
                for _, part in self.fits.parts(
                    "encoding prompts",
                    torch.arange(len(prompts)),
                    batch,
                    lambda rows: _on_cpu(self._encode([prompts[i] for i in rows.tolist()])),
                )
            ]
        return {name: _stacked([part[name] for part in parts]) for name in parts[0]}

    @torch.no_grad()
    def encode_empty(self) -> Conditions | None:
        """Conditions of the negative prompt, one row, where a call uses classifier-free guidance; else None."""
        if not (self.has_cfg and self.guidance_scale > 1):
            return None
        with self.placement.instead_of_denoiser(*self._encoders()):
            return self._encode_empty()

    def _encode_empty(self) -> Conditions:
        return self.encode_prompts([self.negative_prompt])

    @abstractmethod
    def _encode(self, prompts: list[str]) -> Conditions:
        """Conditions of at least "text", by the pipeline's own encode_prompt."""

    def _encoders(self) -> list[nn.Module]:
        found = (getattr(self.pipe, name, None) for name in self.encoders)
        return [encoder for encoder in found if encoder is not None]

    @contextmanager
    def _without_encoders(self) -> Iterator[None]:
        """Within it the pipeline has no encoders: before diffusers 0.42 a call computes where its first part is."""
        own = vars(self.pipe)  # setting an attribute would change the pipeline's config as well
        encoders = {name: own[name] for name in self.encoders if name in own}
        own.update(dict.fromkeys(encoders))
        try:
            yield
        finally:
            own.update(encoders)

    def _encode_prompt(self, prompts: list[str], **arguments: Any) -> tuple[Any, ...]:
        """What the pipeline's encode_prompt returns, with the call's own limit on the length of prompts."""
        limits = {key: self.call[key] for key in ("max_sequence_length", "text_encoder_out_layers") if key in self.call}
        return self.pipe.encode_prompt(prompt=prompts, device=self.device, **arguments, **limits)

    def text(self, conditions: Conditions) -> Tensor:
        """The text tokens an alpha head may see, (B, L, D)."""
        return conditions["text"]

    @torch.no_grad()
    def encode_pictures(self, pictures: np.ndarray) -> Tensor:
        """uint8 pictures (B, H, W, 3) to scaled latents (B, C, h, w): the mode of the VAE's code."""
        vae = self.pipe.vae

        def encode(rows: Tensor) -> Tensor:
            x = torch.from_numpy(np.array(pictures[rows.numpy()])).permute(0, 3, 1, 2).to(self.device, vae.dtype)
            return self.encode_vae(x / 127.5 - 1)

        height, width = (edge // self.pixels_per_latent for edge in pictures.shape[1:3])
        size = max(1, VAE_AT_ONCE // (height * width or 1))
        with self.placement.visit(vae):
            parts = self.fits.parts("encoding pictures", torch.arange(len(pictures)), size, encode)
            return torch.cat([part for _, part in parts])

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> np.ndarray:
        """Scaled latents (B, C, h, w) to uint8 pictures (B, H, W, 3); of a video its middle frame."""
        vae = self.pipe.vae
        # Not in fp16, in which VAEs overflow: SDXL's famously.
        dtype = torch.float32 if self.dtype == torch.float16 else self.dtype

        def decode(rows: Tensor) -> np.ndarray:
            x = self.decode_vae(latents[rows].to(self.device, vae.dtype)).float()
            x = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            return x.permute(0, 2, 3, 1).cpu().numpy()

        size = max(1, VAE_AT_ONCE // latents[0, 0].numel())
        with self.placement.visit(vae), autocast(self.device, dtype):
            parts = self.fits.parts("decoding", torch.arange(len(latents)), size, decode)
            return np.concatenate([part for _, part in parts])

    def encode_vae(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to scaled latents, fp32: the mode of the VAE's code."""
        vae = self.pipe.vae
        code = vae.encode(x).latent_dist.mode().float()
        return (code - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor

    def decode_vae(self, latents: Tensor) -> Tensor:
        """Scaled latents to pictures (B, 3, H, W), in [-1, 1] but for the VAE's errors."""
        vae = self.pipe.vae
        z = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
        return vae.decode(z, return_dict=False)[0]

    def release(self, *parts: str) -> None:
        """Let parts of the pipeline go, to free their memory: the text encoders if none is named."""
        for name in parts or self.encoders:
            if getattr(self.pipe, name, None) is not None:
                self.pipe.register_modules(**{name: None})
        self.placement.forget()

    # The forward.

    def noise_range(self) -> tuple[float, float]:
        """Lowest and highest noise level the model knows; training draws t between them."""
        return 0.0, 1.0

    def predict(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """The raw output, with the family's sign, of x_t's shape, at x_t and t (B,); everything moves to the device."""
        self.placement.bring_denoiser()
        x_t, t = x_t.to(self.device), t.to(self.device)
        with autocast(self.device, self.dtype):
            inputs = self.inputs(x_t, t, {name: value.to(self.device) for name, value in conditions.items()})
            output = as_rows(self.denoiser(**inputs, return_dict=False)[0])
        return self.family.sign * self.unpack(output, x_t)

    @torch.no_grad()
    def predict_rows(self, x_t: Tensor, t: Tensor, conditions: Conditions, batch: int) -> Tensor:
        """As `predict`, without gradients, at most `batch` rows at once; on the CPU."""

        def predict(rows: Tensor) -> Tensor:
            return self.predict(x_t[rows], t[rows], rows_of(conditions, rows)).cpu()

        return torch.cat([part for _, part in self.fits.parts("drawing", torch.arange(len(t)), batch, predict)])

    @abstractmethod
    def inputs(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> dict[str, Any]:
        """What the pipeline calls the denoiser's forward with, at x_t and t."""

    def pack(self, latents: Tensor) -> Any:
        """Latents as the denoiser takes them."""
        return latents

    def unpack(self, output: Tensor, x_t: Tensor) -> Tensor:
        """What the denoiser gave in the shape of x_t."""
        return output

    # Sampling.

    @torch.no_grad()
    def sample(
        self,
        conditions: Conditions,
        prompt: Tensor,
        *,
        seed: int,
        batch: int,
        label: str = "",
        empty: Any = None,
        stop: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Samples of the pipeline, one for each entry of `prompt` (rows of the conditions): latents, fp32, on the CPU.

        The noise of a sample depends on the seed and its place only, so two calls with one seed are comparable picture
        by picture. `empty` are the conditions of the empty prompt, needed with classifier-free guidance. `stop` is
        called before each batch and may raise.
        """
        noise = torch.randn(self.latent_shape(len(prompt)), generator=torch.Generator().manual_seed(seed))

        def draw(rows: Tensor) -> Tensor:
            stop()
            return self.sample_batch(rows_of(conditions, prompt[rows]), noise[rows], empty)

        parts = []
        with tqdm(total=len(prompt), desc=label, unit="picture", disable=not label) as bar:
            for rows, part in self.fits.parts("drawing", torch.arange(len(prompt)), batch, draw):
                parts.append(part)
                bar.update(len(rows))
        return torch.cat(parts)

    @torch.no_grad()
    def sample_batch(self, conditions: Conditions, noise: Tensor, empty: Conditions | None = None) -> Tensor:
        """Latents (B, C, H, W) of one call from this noise."""
        self.placement.bring_denoiser()
        # Packed weights of a quantised model are integers; those not packed have the type that it computes in.
        dtype = next(weight.dtype for weight in self.denoiser.parameters() if weight.is_floating_point())
        like: dict[str, Any] = {"device": self.device, "dtype": dtype}
        given = self.call_conditions({name: value.to(**like) for name, value in conditions.items()})
        if empty is not None:
            wide = {name: value.expand(len(noise), *value.shape[1:]).to(**like) for name, value in empty.items()}
            given |= {f"negative_{name}": value for name, value in self.call_conditions(wide).items()}
        height, width = self.resolution
        call = {**self.call, **given, "height": height, "width": width}
        with autocast(self.device, self.dtype), self._without_encoders():
            out = self.pipe(latents=self.start(noise.to(**like)), output_type="latent", return_dict=False, **call)[0]
        return self.finish(out, noise).float().cpu()

    def call_conditions(self, conditions: Conditions) -> dict[str, Any]:
        """The pipeline call's arguments for conditions."""
        return {"prompt_embeds": conditions["text"]}

    def start(self, noise: Tensor) -> Tensor:
        """Noise as the pipeline's call takes it."""
        return noise

    def finish(self, output: Tensor, noise: Tensor) -> Tensor:
        """What the pipeline's call gave, with output_type="latent", in the shape of the noise."""
        return self.unpack(output, noise)


def _on_cpu(conditions: Conditions) -> Conditions:
    return {name: value.float().cpu() for name, value in conditions.items()}


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Rows of several batches as one; texts or masks of different lengths are padded with zeros at their end."""
    if all(part.shape[1:] == parts[0].shape[1:] for part in parts):
        return torch.cat(list(parts))
    longest = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(part, (0, 0) * (part.ndim - 2) + (0, longest - part.shape[1])) for part in parts])
