"""Tiny random modular pipelines, from prompt embeddings to latents, for the guider."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines.anima import before_denoise as anima
from diffusers.modular_pipelines.anima.denoise import AnimaDenoiseStep
from diffusers.modular_pipelines.modular_pipeline import SequentialPipelineBlocks
from diffusers.modular_pipelines.qwenimage.modular_blocks_qwenimage import QwenImageCoreDenoiseStep
from diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3 import (
    StableDiffusion3T2ICoreDenoiseStep,
)
from diffusers.modular_pipelines.stable_diffusion_xl import modular_blocks_stable_diffusion_xl as sdxl
from diffusers.modular_pipelines.wan.modular_blocks_wan import WanCoreDenoiseStep
from diffusers.modular_pipelines.z_image.modular_blocks_z_image import ZImageCoreDenoiseStep
from torch import Tensor, nn

from helpers.tiny import random_head, random_lora, tiny_adapter, tiny_transformer
from helpers.zoo import CASES
from helpers.zoo_case import WIDTH, WORDS, awake, denoiser_of, rows
from nft_pipeline.adapter import Adapter
from nft_pipeline.families.forward_call import as_tokens
from nft_pipeline.families.registry import family_of
from nft_pipeline.guider import DiffusionNFTGuidance


@dataclass(frozen=True)
class Modular:
    """One modular pipeline.

    Args:
        blocks: its denoising part.
        parts: makes its components, the guider apart.
        call: arguments for samples of these indices, the negative prompt included.
        first_block: name of a module of which each forward of the denoiser runs one, once.
        rescaled: whether the pipeline rescales what classifier-free guidance gives, which no straight line survives.
    """

    blocks: Callable[[], Any]
    parts: Callable[[], dict[str, Any]]
    call: Callable[[list[int]], dict[str, Any]]
    first_block: str = "transformer_blocks.0"
    rescaled: bool = False

    def pipe(self, guider: Any = None) -> Any:
        pipe = self.blocks().init_pipeline()
        pipe.set_progress_bar_config(disable=True)
        pipe.update_components(**self.parts(), guider=guider or stock(1.0))
        return pipe

    def sample(self, pipe: Any, indices: list[int] | None = None, **kwargs: Any) -> Tensor:
        """Latents of a call with fixed noise."""
        indices = [0] if indices is None else indices
        return pipe(**{"num_inference_steps": 3, **self.call(indices), **kwargs}, output="latents")


def adapter_for(
    case: Modular, pipe: Any, *, kind: str | None = None, tilt: float = 2.0, component: str | None = None, seed: int = 7
) -> Adapter:
    """A random adapter for a case's pipeline."""
    denoiser: Any = denoiser_of(pipe)
    kind = kind or "positive"
    component = component or family_of(denoiser).component
    lora = random_lora(denoiser, seed=seed, component=component)
    head = None
    if kind == "positive":
        tap, seen = family_of(denoiser).tap, []
        hook = denoiser.get_submodule(tap).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        guider, pipe.guider = pipe.guider, stock(1.0)
        case.sample(pipe, num_inference_steps=2)
        hook.remove()
        pipe.guider = guider
        head = random_head(as_tokens(seen[0]).shape[-1], text_dim=WIDTH)
        head.config = replace(head.config, tap=tap)
    config = tiny_adapter(denoiser, kind="policy", tilt=tilt).config
    return Adapter(replace(config, kind=kind, component=component), lora, head)


def stock(guidance_scale: float, **kwargs: Any) -> ClassifierFreeGuidance:
    """What diffusers has."""
    return ClassifierFreeGuidance(guidance_scale=guidance_scale, **kwargs)


def _flow_match() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)


def _denoiser(case: str) -> nn.Module:
    """The random denoiser of a pipeline of the zoo."""
    return denoiser_of(CASES[case].pipe())


def _embeds(indices: list[int], *suffixes: str) -> dict[str, Any]:
    made = {}
    for seed, prefix in ((2, ""), (4, "negative_")):
        made[f"{prefix}prompt_embeds"] = rows(indices, WORDS, WIDTH, seed=seed)
        if "pooled" in suffixes:
            made[f"{prefix}pooled_prompt_embeds"] = rows(indices, WIDTH, seed=seed + 1)
        if "mask" in suffixes:
            made[f"{prefix}prompt_embeds_mask"] = torch.ones(len(indices), WORDS, dtype=torch.long)
    return made


def _list_embeds(indices: list[int]) -> dict[str, Any]:
    return {name: list(value.unbind()) for name, value in _embeds(indices).items()}


def _flux3_blocks() -> Any:
    from diffusers.modular_pipelines.flux3.modular_blocks_flux3 import Flux3CoreDenoiseBlocks

    steps = {name: step for name, step in Flux3CoreDenoiseBlocks.items() if name != "after_denoise"}
    return SequentialPipelineBlocks.from_blocks_dict(steps)


def _flux3() -> nn.Module:
    torch.manual_seed(0)
    transformer = diffusers.Flux3Transformer2DModel(
        in_channels=16,
        cond_in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        timestep_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return awake(transformer)


MODULAR: dict[str, Modular] = {
    "StableDiffusion3": Modular(
        StableDiffusion3T2ICoreDenoiseStep,
        lambda: {"transformer": tiny_transformer(channels=16), "scheduler": _flow_match()},
        lambda indices: {
            **_embeds(indices, "pooled"),
            "latents": rows(indices, 16, 8, 8, seed=1),
            "height": 64,
            "width": 64,
        },
    ),
    "StableDiffusionXL": Modular(
        lambda: SequentialPipelineBlocks.from_blocks_dict(
            {
                "input": sdxl.StableDiffusionXLInputStep(),
                "before_denoise": sdxl.StableDiffusionXLBeforeDenoiseStep(),
                "denoise": sdxl.StableDiffusionXLDenoiseStep(),
            }
        ),
        lambda: {"unet": _denoiser("StableDiffusionXLPipeline"), "scheduler": diffusers.EulerDiscreteScheduler()},
        lambda indices: {
            **_embeds(indices, "pooled"),
            "latents": rows(indices, 4, 8, 8, seed=1),
            "height": 64,
            "width": 64,
        },
        first_block="down_blocks.0",
    ),
    "QwenImage": Modular(
        QwenImageCoreDenoiseStep,
        lambda: {"transformer": _denoiser("QwenImagePipeline"), "scheduler": _flow_match()},
        lambda indices: {
            **_embeds(indices, "mask"),
            "latents": rows(indices, 16, 16, seed=1),
            "height": 64,
            "width": 64,
        },
        rescaled=True,
    ),
    "Wan": Modular(
        WanCoreDenoiseStep,
        lambda: {
            "transformer": _denoiser("WanPipeline"),
            "scheduler": diffusers.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
            ),
        },
        lambda indices: {
            **_embeds(indices),
            "latents": rows(indices, 4, 2, 8, 8, seed=1),
            "height": 64,
            "width": 64,
            "num_frames": 5,
        },
        first_block="blocks.0",
    ),
    "ZImage": Modular(
        ZImageCoreDenoiseStep,
        lambda: {"transformer": _denoiser("ZImagePipeline"), "scheduler": _flow_match()},
        lambda indices: {
            **_list_embeds(indices),
            "latents": rows(indices, 4, 8, 8, seed=1),
            "height": 64,
            "width": 64,
        },
        first_block="layers.0",
    ),
    "Flux3": Modular(
        _flux3_blocks,
        lambda: {"transformer": _flux3(), "scheduler": _flow_match()},
        lambda indices: {
            **_embeds(indices),
            "latents": rows(indices, 16, 4, 4, seed=1),
            "height": 64,
            "width": 64,
        },
        first_block="single_transformer_blocks.0",
    ),
    "Anima": Modular(
        lambda: SequentialPipelineBlocks.from_blocks_dict(
            {
                "input": anima.AnimaTextInputStep(),
                "prepare_latents": anima.AnimaPrepareLatentsStep(),
                "set_timesteps": anima.AnimaSetTimestepsStep(),
                "denoise": AnimaDenoiseStep(),
            }
        ),
        lambda: {"transformer": _denoiser("Cosmos2TextToImagePipeline"), "scheduler": _flow_match()},
        lambda indices: {
            **_embeds(indices),
            "latents": rows(indices, 4, 1, 8, 8, seed=1),
            "height": 64,
            "width": 64,
        },
    ),
}
IS_NEW = hasattr(diffusers, "Flux3Transformer2DModel")  # 0.42; Python 3.10 has 0.41
if not IS_NEW:
    del MODULAR["Flux3"], MODULAR["Anima"]

SD3 = MODULAR["StableDiffusion3"]
CFG = 4.0


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, atol=1e-5 * max(1.0, expected.abs().max().item()), rtol=0)


def guided(case: Modular, pipe: Any, *, kind: str | None = None, tilt: float = 2.0, **settings: Any) -> Any:
    """A guider in the place of the pipeline's, its adapter loaded."""
    guider = DiffusionNFTGuidance(**settings)
    pipe.update_components(guider=guider)
    guider.load_nft_adapter(pipe, adapter_for(case, pipe, kind=kind, tilt=tilt))
    return guider


def counter(case: Modular, pipe: Any) -> list[int]:
    """Counts real forwards of the denoiser, however they are reached."""
    count: list[int] = []
    denoiser_of(pipe).get_submodule(case.first_block).register_forward_pre_hook(lambda *_: count.append(1))
    return count
