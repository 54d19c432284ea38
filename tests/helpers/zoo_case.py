"""What a case of the zoo is: one pipeline class over a tiny random model, and how it is called.

A case builds a pipeline without text encoders: prompts come as random embeddings, one per sample, so that all samples
differ. Weights are random but fixed; `seed` of a call fixes noise and embeddings sample by sample, so that sample i of
a batch is the i-th sample on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

WORDS, WIDTH = 5, 16


def rows(indices: list[int], *shape: int, seed: int = 0) -> Tensor:
    """Random rows, each fixed by its index alone."""
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(1000 * seed + i)) for i in indices])


class _FirstStepDone(Exception):
    pass


@dataclass(frozen=True)
class Case:
    """One pipeline class.

    Args:
        build: makes the pipeline.
        conditions: the call's arguments for samples of these indices.
        cfg: further arguments that switch classifier-free guidance on, for samples of these indices; {} for pipelines
            that have none.
        start: whether the call takes `latents` of this shape per sample; None if it starts from a picture.
        steps: of a call; some pipelines cannot do with two.
        alone: whether the call takes no more than one sample.
    """

    build: Callable[[], Any]
    conditions: Callable[[list[int]], dict[str, Any]]
    cfg: Callable[[list[int]], dict[str, Any]]
    start: tuple[int, ...] | None
    steps: int = 2
    alone: bool = False

    def pipe(self) -> Any:
        pipe = self.build()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sample(self, pipe: Any, indices: list[int] | None = None, *, cfg: bool = False, **kwargs: Any) -> Tensor:
        """Latents of a call with fixed noise."""
        indices = [0] if indices is None else indices
        call = {"num_inference_steps": self.steps, "output_type": "latent", **self.conditions(indices)}
        generators = [torch.Generator().manual_seed(500 + i) for i in indices]
        call["generator"] = generators[0] if self.alone else generators
        if self.start is not None:
            call["latents"] = rows(indices, *self.start, seed=1)
        torch.manual_seed(0)  # for pipelines that draw without the generator, as SD3's ControlNet does
        return pipe(**{**call, **(self.cfg(indices) if cfg else {}), **kwargs})[0]

    def predict(self, pipe: Any, indices: list[int] | None = None, **kwargs: Any) -> Tensor:
        """What the scheduler is given at a call's first step; the call ends there."""
        seen: list[Tensor] = []

        def step(prediction: Tensor, *_: Any, **__: Any) -> None:
            seen.append(prediction.clone())
            raise _FirstStepDone

        pipe.scheduler.step = step
        try:
            self.sample(pipe, indices, **kwargs)
        except _FirstStepDone:
            return seen[0]
        finally:
            del pipe.scheduler.step
        raise AssertionError("the pipeline took no step")


def denoiser_of(pipe: Any) -> nn.Module:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def awake(model: nn.Module) -> nn.Module:
    """The model with random numbers where training starts from zeros: gates, without which blocks do nothing."""
    for weight in model.parameters():
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def kl_vae(channels: int = 4) -> diffusers.AutoencoderKL:
    """An image VAE. Its code for a picture has no spread: some pipelines draw from it with a generator of their own."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        latent_channels=channels,
        norm_num_groups=1,
        shift_factor=0.06,
        scaling_factor=1.5,
    ).eval()
    torch.nn.init.zeros_(vae.quant_conv.weight[channels:])
    torch.nn.init.constant_(vae.quant_conv.bias[channels:], -30.0)
    return vae


def embeds(indices: list[int], *, pooled: bool = False, negative: bool = False) -> dict[str, Any]:
    prefix, seed = ("negative_", 4) if negative else ("", 2)
    made = {f"{prefix}prompt_embeds": rows(indices, WORDS, WIDTH, seed=seed)}
    if pooled:
        made[f"{prefix}pooled_prompt_embeds"] = rows(indices, WIDTH, seed=seed + 1)
    return made


def size(edge: int = 8) -> dict[str, Any]:
    return {"height": edge, "width": edge}


def picture(indices: list[int], edge: int = 8) -> dict[str, Any]:
    return {"image": rows(indices, 3, edge, edge, seed=6).sigmoid(), "strength": 1.0}


def inpainted(indices: list[int]) -> dict[str, Any]:
    mask = torch.zeros(len(indices), 1, 8, 8)
    mask[..., 4:] = 1.0
    return {**picture(indices), "mask_image": mask}


def control_picture(indices: list[int]) -> dict[str, Any]:
    return {"image": rows(indices, 3, 8, 8, seed=6).sigmoid(), "controlnet_conditioning_scale": 0.7}


def batched(
    *,
    pooled: bool,
    more: Callable[[list[int]], dict[str, Any]] = lambda indices: {},
    sized: bool = True,
    channels: int = 4,
) -> dict[str, Any]:
    """Arguments of pipelines that double the batch under classifier-free guidance; `more` are the call's own."""
    return {
        "conditions": lambda indices: {
            **embeds(indices, pooled=pooled),
            "guidance_scale": 1.0,
            **more(indices),
            **(size() if sized else {}),
        },
        "cfg": lambda indices: {**embeds(indices, pooled=pooled, negative=True), "guidance_scale": 4.0},
        "start": None if "strength" in more([0]) else (channels, 8, 8),
    }


def masked(indices: list[int], *, negative: bool = False, dtype: torch.dtype = torch.long) -> dict[str, Any]:
    """Prompts with an attention mask."""
    name = "negative_prompt_attention_mask" if negative else "prompt_attention_mask"
    return {**embeds(indices, negative=negative), name: torch.ones(len(indices), WORDS, dtype=dtype)}


def listed(indices: list[int], *, negative: bool = False) -> dict[str, Any]:
    return {name: list(value.unbind(0)) for name, value in embeds(indices, negative=negative).items()}
