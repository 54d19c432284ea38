"""Tiny video pipelines."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from helpers.zoo_case import WIDTH, WORDS, Case, embeds, masked, rows, size


def _wan(cls: Any, *, channels: int = 4, vae: Any = None, **more: Any) -> Any:
    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    ).eval()
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return cls(transformer=transformer, scheduler=scheduler, vae=vae, text_encoder=None, tokenizer=None, **more)


def wan_vae() -> Any:
    torch.manual_seed(0)
    return diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()


def _from_picture(indices: list[int]) -> dict[str, Any]:
    """One picture for all samples: these pipelines take no more."""
    return {**WAN_CALL["conditions"](indices), **size(32), "image": rows([0], 3, 32, 32, seed=6).sigmoid()}


def _ltx() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=WIDTH,
    ).eval()
    return diffusers.LTXPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )


def _hunyuan_video() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        mlp_ratio=1.0,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(2, 2, 4),
    ).eval()
    return diffusers.HunyuanVideoPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )


def _mochi() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,  # the last block is a special one
        pooled_projection_dim=8,
        in_channels=4,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
    ).eval()
    return diffusers.MochiPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )


def _cog_video_x() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=WORDS,
        use_rotary_positional_embeddings=True,
    ).eval()
    return diffusers.CogVideoXPipeline(
        transformer=transformer,
        scheduler=diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing"),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )


WAN_CALL: dict[str, Any] = {
    "conditions": lambda indices: {**embeds(indices), **size(64), "num_frames": 5, "guidance_scale": 1.0},
    "cfg": lambda indices: {**embeds(indices, negative=True), "guidance_scale": 4.0},
}
_HUNYUAN_CALL: dict[str, Any] = {
    "conditions": lambda indices: {
        **masked(indices),
        "pooled_prompt_embeds": rows(indices, WIDTH, seed=3),
        **size(64),
        "num_frames": 5,
    },
    "cfg": lambda indices: {
        **masked(indices, negative=True),
        "negative_pooled_prompt_embeds": rows(indices, WIDTH, seed=5),
        "true_cfg_scale": 4.0,
    },
}

CASES: dict[str, Case] = {
    "WanPipeline": Case(lambda: _wan(diffusers.WanPipeline), start=(4, 2, 8, 8), **WAN_CALL),
    "WanImageToVideoPipeline": Case(
        lambda: _wan(diffusers.WanImageToVideoPipeline, channels=4 + 4 + 4, vae=wan_vae()),
        conditions=_from_picture,
        cfg=WAN_CALL["cfg"],
        start=(4, 2, 4, 4),
    ),
    "WanImageToVideoPipeline, a time for each token": Case(
        lambda: _wan(diffusers.WanImageToVideoPipeline, vae=wan_vae(), expand_timesteps=True),
        conditions=_from_picture,
        cfg=WAN_CALL["cfg"],
        start=(4, 2, 4, 4),
    ),
    "LTXPipeline": Case(
        _ltx,
        conditions=lambda indices: {**masked(indices), **size(64), "num_frames": 9, "guidance_scale": 1.0},
        cfg=lambda indices: {**masked(indices, negative=True), "guidance_scale": 4.0},
        start=(8, 4),
    ),
    "HunyuanVideoPipeline": Case(_hunyuan_video, start=(4, 2, 8, 8), **_HUNYUAN_CALL),
    "MochiPipeline": Case(
        _mochi,
        conditions=lambda indices: {**masked(indices), **size(64), "num_frames": 7, "guidance_scale": 1.0},
        cfg=lambda indices: {**masked(indices, negative=True), "guidance_scale": 4.0},
        start=(4, 2, 8, 8),
        steps=4,
    ),
    "CogVideoXPipeline": Case(
        _cog_video_x,
        conditions=lambda indices: {**embeds(indices), **size(64), "num_frames": 5, "guidance_scale": 1.0},
        cfg=lambda indices: {**embeds(indices, negative=True), "guidance_scale": 4.0},
        start=(2, 4, 8, 8),
    ),
}
