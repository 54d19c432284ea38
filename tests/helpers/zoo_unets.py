"""Tiny pipelines of Stable Diffusion 1 and 2 and SDXL, whose denoiser is a UNet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch

from helpers.zoo_case import WIDTH, Case, awake, batched, control_picture, inpainted, kl_vae, picture, rows


def unet(**kwargs: Any) -> diffusers.UNet2DConditionModel:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        **kwargs,
    ).eval()


def _ddim() -> diffusers.DDIMScheduler:
    return diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)


def _ddim_v() -> diffusers.DDIMScheduler:
    """Stable Diffusion 2.1's."""
    return diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, prediction_type="v_prediction")


def stable_diffusion(cls: Any, scheduler: Callable[[], Any] = _ddim) -> Any:
    return cls(
        vae=kl_vae(),
        text_encoder=None,
        tokenizer=None,
        unet=unet(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _control_net(cls: Any, pipe: Any, **more: Any) -> Any:
    torch.manual_seed(3)
    control_net = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4,))
    return cls(**pipe.components, controlnet=awake(control_net), **more)


def _stable_diffusion_control_net() -> Any:
    pipe = stable_diffusion(diffusers.StableDiffusionPipeline)
    return _control_net(diffusers.StableDiffusionControlNetPipeline, pipe, requires_safety_checker=False)


def _sdxl_control_net() -> Any:
    pipe = sdxl(diffusers.StableDiffusionXLPipeline)
    return _control_net(diffusers.StableDiffusionXLControlNetPipeline, pipe, add_watermarker=False)


def _ip_adapter() -> Any:
    """Stable Diffusion with an IP-Adapter of random weights, four picture tokens."""
    pipe = stable_diffusion(diffusers.StableDiffusionPipeline)
    torch.manual_seed(3)
    weights = {}
    for i, name in enumerate(pipe.unet.attn_processors):
        if name.endswith("attn2.processor"):
            inner = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            weights |= {f"{i}.to_{part}_ip.weight": torch.randn(inner, WIDTH) for part in ("k", "v")}
    projection = {
        "proj.weight": torch.randn(4 * WIDTH, WIDTH),
        "proj.bias": torch.zeros(4 * WIDTH),
        "norm.weight": torch.ones(WIDTH),
        "norm.bias": torch.zeros(WIDTH),
    }
    pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])
    pipe.set_ip_adapter_scale(0.7)
    return pipe


def _looked_at(cfg: bool) -> dict[str, Any]:
    """One picture for all samples: the pipeline repeats it."""
    seen = rows([0], 1, WIDTH, seed=8)
    return {"ip_adapter_image_embeds": [torch.cat([torch.zeros_like(seen), seen]) if cfg else seen]}


def sdxl(cls: Any) -> Any:
    denoiser = unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + WIDTH
    )
    return cls(
        vae=kl_vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=denoiser,
        scheduler=diffusers.EulerDiscreteScheduler(),
        add_watermarker=False,
    )


CASES: dict[str, Case] = {
    "StableDiffusionPipeline": Case(
        lambda: stable_diffusion(diffusers.StableDiffusionPipeline), **batched(pooled=False)
    ),
    "StableDiffusionPipeline, v": Case(
        lambda: stable_diffusion(diffusers.StableDiffusionPipeline, _ddim_v),
        **batched(pooled=False),
    ),
    "StableDiffusionImg2ImgPipeline": Case(
        lambda: stable_diffusion(diffusers.StableDiffusionImg2ImgPipeline),
        **batched(pooled=False, more=picture, sized=False),
    ),
    "StableDiffusionInpaintPipeline": Case(
        lambda: stable_diffusion(diffusers.StableDiffusionInpaintPipeline),
        **batched(pooled=False, more=inpainted),
    ),
    "StableDiffusionControlNetPipeline": Case(
        _stable_diffusion_control_net, **batched(pooled=False, more=control_picture)
    ),
    "StableDiffusionPipeline, IP-Adapter": Case(
        _ip_adapter,
        conditions=lambda indices: {**batched(pooled=False)["conditions"](indices), **_looked_at(False)},
        cfg=lambda indices: {**batched(pooled=False)["cfg"](indices), **_looked_at(True)},
        start=(4, 8, 8),
    ),
    "StableDiffusionXLPipeline": Case(lambda: sdxl(diffusers.StableDiffusionXLPipeline), **batched(pooled=True)),
    "StableDiffusionXLImg2ImgPipeline": Case(
        lambda: sdxl(diffusers.StableDiffusionXLImg2ImgPipeline),
        **batched(pooled=True, more=picture, sized=False),
    ),
    "StableDiffusionXLInpaintPipeline": Case(
        lambda: sdxl(diffusers.StableDiffusionXLInpaintPipeline), **batched(pooled=True, more=inpainted)
    ),
    "StableDiffusionXLControlNetPipeline": Case(_sdxl_control_net, **batched(pooled=True, more=control_picture)),
}
