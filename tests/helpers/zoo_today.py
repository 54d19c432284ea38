"""Tiny pipelines of newer models: Krea 2, LongCat-Image, Ideogram 4, HunyuanImage, HunyuanVideo 1.5, SkyReels V2, VACE.

The pipelines of LongCat-Image and Ideogram 4 take prompts alone, so a prompt "2 0" stands here for the text of seed 2
and index 0.
"""

from __future__ import annotations

from typing import Any

import diffusers
import PIL.Image
import torch
from diffusers.guiders import ClassifierFreeGuidance
from torch import Tensor

from helpers.zoo_case import WIDTH, WORDS, Case, awake, rows, size
from helpers.zoo_videos import WAN_CALL, wan_vae

LAYERS = 2  # of the text encoder, whose outputs Krea 2 takes beside each other


def _krea2() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        timestep_embed_dim=16,
        text_hidden_dim=WIDTH // LAYERS,
        num_text_layers=LAYERS,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
    return diffusers.Krea2Pipeline(
        transformer=awake(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_select_layers=tuple(range(LAYERS)),
    )


def _krea2_embeds(indices: list[int], *, negative: bool = False) -> dict[str, Any]:
    prefix, seed = ("negative_", 4) if negative else ("", 2)
    return {
        f"{prefix}prompt_embeds": rows(indices, WORDS, LAYERS, WIDTH // LAYERS, seed=seed),
        f"{prefix}prompt_embeds_mask": torch.ones(len(indices), WORDS, dtype=torch.bool),
    }


def _longcat() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
    )
    pipe = diffusers.LongCatImagePipeline(
        transformer=awake(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_processor=None,
    )
    pipe._encode_prompt = _looked_up
    return pipe


def _looked_up(prompts: list[str]) -> Tensor:
    return torch.cat([rows([int(p.split()[1])], WORDS, WIDTH, seed=int(p.split()[0])) for p in prompts])


def _ideogram4() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "in_channels": 16,
        "num_layers": 1,
        "attention_head_dim": 12,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "adaln_dim": 8,
        "llm_features_dim": WIDTH,
        "mrope_section": (2, 2, 2),
    }
    pipe = diffusers.Ideogram4Pipeline(
        transformer=awake(diffusers.Ideogram4Transformer2DModel(**sizes)),
        unconditional_transformer=awake(diffusers.Ideogram4Transformer2DModel(**sizes)),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )

    def encode_prompt(prompt: list[str], grid_h: int, grid_w: int, **_: Any) -> tuple[Tensor, ...]:
        ids = pipe._prepare_ids([WORDS] * len(prompt), grid_h, grid_w, WORDS, torch.device("cpu"))
        text = _looked_up(prompt)
        return torch.cat([text, text.new_zeros(len(prompt), grid_h * grid_w, WIDTH)], dim=1), *ids

    pipe.encode_prompt = encode_prompt
    return pipe


def _hunyuan_image(guider: Any = None) -> Any:
    torch.manual_seed(0)
    transformer = diffusers.HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        mlp_ratio=1.0,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        rope_axes_dim=(4, 4),
    )
    return diffusers.HunyuanImagePipeline(
        transformer=awake(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        guider=guider,
        ocr_guider=guider,
    )


def _hunyuan_video15(guider: Any) -> Any:
    torch.manual_seed(0)
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=4 + 4 + 1,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=1.0,
        text_embed_dim=WIDTH,
        text_embed_2_dim=WIDTH,
        image_embed_dim=WIDTH,
        rope_axes_dim=(2, 2, 4),
    )
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(4, 8, 8), layers_per_block=1, spatial_compression_ratio=4
    )
    pipe = diffusers.HunyuanVideo15Pipeline(
        transformer=awake(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0),
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        guider=guider,
    )
    pipe.vision_num_semantic_tokens = 4
    return pipe


def _two_texts(indices: list[int], *, negative: bool = False) -> dict[str, Any]:
    """Texts of two encoders, each with a mask."""
    prefix, seed = ("negative_", 4) if negative else ("", 2)
    made: dict[str, Any] = {}
    for end, more in (("", 0), ("_2", 10)):
        made[f"{prefix}prompt_embeds{end}"] = rows(indices, WORDS, WIDTH, seed=seed + more)
        made[f"{prefix}prompt_embeds_mask{end}"] = torch.ones(len(indices), WORDS, dtype=torch.long)
    return made


def _both_texts(indices: list[int]) -> dict[str, Any]:
    """For a pipeline whose guider wants the unconditional text in every call."""
    return {**_two_texts(indices), **_two_texts(indices, negative=True)}


def _video(indices: list[int]) -> dict[str, Any]:
    return {**size(32), "num_frames": 5}


def _skyreels() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.SkyReelsV2Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
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
    return diffusers.SkyReelsV2Pipeline(
        transformer=transformer, scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None
    )


def _vace() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.WanVACETransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
        vace_layers=[0, 1],
        vace_in_channels=4 + 4 + 8 * 8,
    )
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.WanVACEPipeline(
        transformer=awake(transformer), scheduler=scheduler, vae=wan_vae(), text_encoder=None, tokenizer=None
    )


def _steered(indices: list[int]) -> dict[str, Any]:
    """One video for all samples to follow, weakly in the first layer: VACE takes no more."""
    video = [PIL.Image.new("RGB", (32, 32), (40 * i, 90, 200)) for i in range(5)]
    return {**WAN_CALL["conditions"](indices), **size(32), "video": video, "conditioning_scale": [0.5, 1.0]}


CASES: dict[str, Case] = {
    "Krea2Pipeline": Case(
        _krea2,
        conditions=lambda indices: {**_krea2_embeds(indices), **size(64), "guidance_scale": 0.0},
        cfg=lambda indices: {**_krea2_embeds(indices, negative=True), "guidance_scale": 3.0},
        start=(16, 16),
    ),
    "LongCatImagePipeline": Case(
        _longcat,
        conditions=lambda indices: {
            "prompt": [f"2 {i}" for i in indices],
            **size(64),
            "guidance_scale": 1.0,
            "enable_prompt_rewrite": False,
        },
        # Its default, a rescaling of what classifier-free guidance gives by a ratio of norms, is not linear.
        cfg=lambda indices: {
            "negative_prompt": [f"4 {i}" for i in indices],
            "guidance_scale": 4.0,
            "enable_cfg_renorm": False,
        },
        start=(16, 64),
    ),
    # Always under guidance by its second model, which has no prompt and no LoRA.
    "Ideogram4Pipeline": Case(
        _ideogram4,
        conditions=lambda indices: {
            "prompt": [f"2 {i}" for i in indices],
            **size(64),
            "max_sequence_length": WORDS,
            "guidance_scale": 3.0,
            "guidance_schedule": None,
        },
        cfg=lambda indices: {},
        start=(16, 16),
    ),
    "HunyuanImagePipeline": Case(
        _hunyuan_image,
        conditions=lambda indices: {**_two_texts(indices), **size(256)},
        cfg=lambda indices: {},
        start=(4, 8, 8),
    ),
    "HunyuanImagePipeline, under a guider": Case(
        lambda: _hunyuan_image(ClassifierFreeGuidance(guidance_scale=3.0)),
        conditions=lambda indices: {**_both_texts(indices), **size(256)},
        cfg=lambda indices: {},
        start=(4, 8, 8),
    ),
    "HunyuanVideo15Pipeline": Case(
        lambda: _hunyuan_video15(ClassifierFreeGuidance(enabled=False)),
        conditions=lambda indices: {**_two_texts(indices), **_video(indices)},
        cfg=lambda indices: {},
        start=(4, 2, 8, 8),
    ),
    "HunyuanVideo15Pipeline, under a guider": Case(
        lambda: _hunyuan_video15(ClassifierFreeGuidance(guidance_scale=3.0)),
        conditions=lambda indices: {**_both_texts(indices), **_video(indices)},
        cfg=lambda indices: {},
        start=(4, 2, 8, 8),
    ),
    "SkyReelsV2Pipeline": Case(_skyreels, start=(4, 2, 8, 8), **WAN_CALL),
    "WanVACEPipeline": Case(_vace, conditions=_steered, cfg=WAN_CALL["cfg"], start=(4, 2, 4, 4), alone=True),
}
