"""Tiny pipelines of Stable Diffusion 3, FLUX.1 and 2, Qwen-Image and Z-Image, with those that start from a picture."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from helpers.tiny import tiny_transformer
from helpers.zoo_case import (
    WIDTH,
    WORDS,
    Case,
    awake,
    batched,
    control_picture,
    embeds,
    inpainted,
    kl_vae,
    listed,
    picture,
    rows,
    size,
)


def _sd3(cls: Any) -> Any:
    return cls(
        transformer=tiny_transformer(channels=16),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=kl_vae(16),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def flux(cls: Any, *, channels: int = 16, **more: Any) -> Any:
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=channels,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
        **more,
    ).eval()
    return cls(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=kl_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )


def _sd3_control_net() -> Any:
    pipe = _sd3(diffusers.StableDiffusion3Pipeline)
    torch.manual_seed(3)
    control_net = diffusers.SD3ControlNetModel.from_transformer(
        pipe.transformer, num_extra_conditioning_channels=0, load_weights_from_transformer=False
    )
    return diffusers.StableDiffusion3ControlNetPipeline(**pipe.components, controlnet=awake(control_net))


def _flux_control_net() -> Any:
    pipe = flux(diffusers.FluxPipeline)
    torch.manual_seed(3)
    control_net = diffusers.FluxControlNetModel.from_transformer(
        pipe.transformer,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        load_weights_from_transformer=False,
    )
    parts = {name: part for name, part in pipe.components.items() if name not in ("image_encoder", "feature_extractor")}
    return diffusers.FluxControlNetPipeline(**parts, controlnet=awake(control_net))


def _qwen_image(cls: Any, vae: Any = None) -> Any:
    torch.manual_seed(0)
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    ).eval()
    return cls(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
    )


def _qwen_vae() -> Any:
    torch.manual_seed(0)
    return diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()


def flux2(cls: Any) -> Any:
    torch.manual_seed(0)
    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    ).eval()
    return cls(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKLFlux2(
            block_out_channels=(4,),
            down_block_types=("DownEncoderBlock2D",),
            up_block_types=("UpDecoderBlock2D",),
            latent_channels=4,
            norm_num_groups=1,
        ).eval(),
        text_encoder=None,
        tokenizer=None,
    )


def _z_image(cls: Any, vae: Any = None) -> Any:
    torch.manual_seed(0)
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[64, 32, 32],
    ).eval()
    return cls(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
    )


_FLUX_CALL: dict[str, Any] = {
    "conditions": lambda indices: {**embeds(indices, pooled=True), **size()},
    "cfg": lambda indices: {**embeds(indices, pooled=True, negative=True), "true_cfg_scale": 4.0},
}

_QWEN_CALL: dict[str, Any] = {
    "conditions": lambda indices: {
        "prompt_embeds": rows(indices, WORDS, WIDTH, seed=2),
        "prompt_embeds_mask": torch.ones(len(indices), WORDS, dtype=torch.long),
    },
    "cfg": lambda indices: {
        "negative_prompt_embeds": rows(indices, WORDS, WIDTH, seed=4),
        "negative_prompt_embeds_mask": torch.ones(len(indices), WORDS, dtype=torch.long),
        "true_cfg_scale": 4.0,
    },
}
CASES: dict[str, Case] = {
    "StableDiffusion3Pipeline": Case(
        lambda: _sd3(diffusers.StableDiffusion3Pipeline), **batched(pooled=True, channels=16)
    ),
    "StableDiffusion3Img2ImgPipeline": Case(
        lambda: _sd3(diffusers.StableDiffusion3Img2ImgPipeline), **batched(pooled=True, channels=16, more=picture)
    ),
    "StableDiffusion3InpaintPipeline": Case(
        lambda: _sd3(diffusers.StableDiffusion3InpaintPipeline), **batched(pooled=True, channels=16, more=inpainted)
    ),
    "StableDiffusion3ControlNetPipeline": Case(
        _sd3_control_net,
        **batched(
            pooled=True,
            channels=16,
            more=lambda indices: {
                "control_image": control_picture(indices)["image"],
                "controlnet_conditioning_scale": 0.7,
            },
        ),
    ),
    "FluxPipeline": Case(lambda: flux(diffusers.FluxPipeline), start=(16, 16), **_FLUX_CALL),
    "FluxImg2ImgPipeline": Case(
        lambda: flux(diffusers.FluxImg2ImgPipeline),
        conditions=lambda indices: {**_FLUX_CALL["conditions"](indices), **picture(indices)},
        cfg=_FLUX_CALL["cfg"],
        start=None,
    ),
    "FluxInpaintPipeline": Case(
        lambda: flux(diffusers.FluxInpaintPipeline),
        conditions=lambda indices: {**_FLUX_CALL["conditions"](indices), **inpainted(indices)},
        cfg=_FLUX_CALL["cfg"],
        start=None,
    ),
    "FluxControlNetPipeline": Case(
        _flux_control_net,
        conditions=lambda indices: {
            **_FLUX_CALL["conditions"](indices),
            "control_image": control_picture(indices)["image"],
            "controlnet_conditioning_scale": 0.7,
        },
        cfg=_FLUX_CALL["cfg"],
        start=(16, 16),
    ),
    "FluxKontextPipeline": Case(
        lambda: flux(diffusers.FluxKontextPipeline),
        conditions=lambda indices: {
            **_FLUX_CALL["conditions"](indices),
            "image": picture(indices)["image"],
            "_auto_resize": False,
            "max_area": 64,
        },
        cfg=_FLUX_CALL["cfg"],
        start=(16, 16),
    ),
    "QwenImagePipeline": Case(
        lambda: _qwen_image(diffusers.QwenImagePipeline),
        conditions=lambda indices: {**_QWEN_CALL["conditions"](indices), **size(64)},
        cfg=_QWEN_CALL["cfg"],
        start=(16, 16),
    ),
    "QwenImageImg2ImgPipeline": Case(
        lambda: _qwen_image(diffusers.QwenImageImg2ImgPipeline, _qwen_vae()),
        conditions=lambda indices: {**_QWEN_CALL["conditions"](indices), **picture(indices, 16), **size(16)},
        cfg=_QWEN_CALL["cfg"],
        start=None,
    ),
    "Flux2Pipeline": Case(
        lambda: flux2(diffusers.Flux2Pipeline),
        conditions=lambda indices: {**embeds(indices), **size()},
        cfg=lambda indices: {},
        start=(16, 4, 4),
    ),
    "Flux2KleinPipeline": Case(
        lambda: flux2(diffusers.Flux2KleinPipeline),
        conditions=lambda indices: {**embeds(indices), **size(), "guidance_scale": 1.0},
        cfg=lambda indices: {**embeds(indices, negative=True), "guidance_scale": 4.0},
        start=(16, 4, 4),
    ),
    "ZImagePipeline": Case(
        lambda: _z_image(diffusers.ZImagePipeline),
        conditions=lambda indices: {**listed(indices), **size(64), "guidance_scale": 0.0},
        cfg=lambda indices: {**listed(indices, negative=True), "guidance_scale": 4.0},
        start=(4, 8, 8),
    ),
    "ZImageImg2ImgPipeline": Case(
        lambda: _z_image(diffusers.ZImageImg2ImgPipeline, kl_vae()),
        conditions=lambda indices: {**listed(indices), **size(), **picture(indices), "guidance_scale": 0.0},
        cfg=lambda indices: {**listed(indices, negative=True), "guidance_scale": 4.0},
        start=None,
    ),
}
