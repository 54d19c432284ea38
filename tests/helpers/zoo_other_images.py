"""Tiny pipelines of the other image models whose denoiser is a transformer."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from helpers.zoo_case import (
    WIDTH,
    WORDS,
    Case,
    awake,
    embeds,
    kl_vae,
    masked,
    picture,
    rows,
    size,
)


def _sana() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=8,
        patch_size=1,
    ).eval()
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.SanaPipeline(
        transformer=transformer, scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None
    )


def _pixart(cls: Any) -> Any:
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,  # the second half is a learned variance, which the pipeline drops
        num_layers=1,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=WIDTH,
        norm_num_groups=1,
        use_additional_conditions=False,
    ).eval()
    scheduler = diffusers.DPMSolverMultistepScheduler()
    return cls(transformer=transformer, scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None)


def _lumina2() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(16, 16, 16),
        cap_feat_dim=WIDTH,
    ).eval()
    return diffusers.Lumina2Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )


def _lumina() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        cross_attention_dim=WIDTH,
    ).eval()
    return diffusers.LuminaPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )


def _aura_flow() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    ).eval()
    for name, weight in transformer.named_parameters():
        if "norm1" in name:  # gates, so small that attention does next to nothing
            weight.data *= 20
    return diffusers.AuraFlowPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )


def _cog_view4() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=8,
        rope_axes_dim=(16, 16),
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return diffusers.CogView4Pipeline(
        transformer=transformer, scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None
    )


def _chroma(cls: Any) -> Any:
    torch.manual_seed(0)
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    ).eval()
    return cls(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=kl_vae(),
        text_encoder=None,
        tokenizer=None,
    )


def _hidream() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=WIDTH,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(8, 8),
        llama_layers=[0, 1],
    ).eval()
    nothing = {f"{part}{n}": None for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3", "_4")}
    pipe = diffusers.HiDreamImagePipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=None,
        **nothing,
    )
    pipe.default_sample_size = 8  # it scales every picture to this size
    return pipe


def _hidream_embeds(indices: list[int], *, negative: bool = False) -> dict[str, Any]:
    prefix, seed = ("negative_", 4) if negative else ("", 2)
    return {
        f"{prefix}prompt_embeds_t5": rows(indices, WORDS, WIDTH, seed=seed),
        f"{prefix}prompt_embeds_llama3": rows(indices, 2, WORDS, WIDTH, seed=seed + 10).transpose(0, 1),
        f"{prefix}pooled_prompt_embeds": rows(indices, WIDTH, seed=seed + 1),
    }


def _kandinsky5() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=8,
        out_visual_dim=4,
        patch_size=(1, 2, 2),
        model_dim=16,
        ff_dim=16,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 2, 2),
    )
    pipe = diffusers.Kandinsky5T2IPipeline(
        transformer=awake(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )
    pipe.resolutions = [(64, 64)]  # it takes the nearest of these
    return pipe


def _kandinsky_embeds(indices: list[int], *, negative: bool = False) -> dict[str, Any]:
    prefix, seed = ("negative_", 4) if negative else ("", 2)
    return {
        f"{prefix}prompt_embeds_qwen": rows(indices, WORDS, WIDTH, seed=seed),
        f"{prefix}prompt_embeds_clip": rows(indices, WIDTH, seed=seed + 1),
        f"{prefix}prompt_cu_seqlens": WORDS * torch.arange(len(indices) + 1, dtype=torch.int32),
    }


def _ovis() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    return diffusers.OvisImagePipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )


class _NothingChecked(torch.nn.Module):
    """In the place of Cosmos's safety checker, which is a package and models of its own."""

    dtype = torch.float32
    device = torch.device("cpu")

    def check_text_safety(self, prompt: str) -> bool:
        return True


def _cosmos2() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        mlp_ratio=1.0,
        text_embed_dim=WIDTH,
        adaln_lora_dim=4,
        max_size=(4, 16, 16),
        extra_pos_embed_type=None,
        concat_padding_mask=False,  # which needs torchvision
    ).eval()
    return diffusers.Cosmos2TextToImagePipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        safety_checker=_NothingChecked(),
    )


_PIXART_CALL: dict[str, Any] = {
    "conditions": lambda indices: {
        **masked(indices),
        **size(64),
        "guidance_scale": 1.0,
        "negative_prompt": None,
        "use_resolution_binning": False,
    },
    "cfg": lambda indices: {**masked(indices, negative=True), "guidance_scale": 4.0},
    "start": (4, 8, 8),
}
_CHROMA_CALL: dict[str, Any] = {
    "conditions": lambda indices: {**masked(indices, dtype=torch.bool), **size(), "guidance_scale": 1.0},
    "cfg": lambda indices: {**masked(indices, negative=True, dtype=torch.bool), "guidance_scale": 4.0},
}
CASES: dict[str, Case] = {
    "SanaPipeline": Case(
        _sana,
        conditions=lambda indices: {
            **masked(indices),
            **size(256),
            "guidance_scale": 1.0,
            "use_resolution_binning": False,
        },
        cfg=lambda indices: {**masked(indices, negative=True), "negative_prompt": None, "guidance_scale": 4.0},
        start=(4, 8, 8),
    ),
    "PixArtAlphaPipeline": Case(lambda: _pixart(diffusers.PixArtAlphaPipeline), **_PIXART_CALL),
    "PixArtSigmaPipeline": Case(lambda: _pixart(diffusers.PixArtSigmaPipeline), **_PIXART_CALL),
    "LuminaPipeline": Case(
        _lumina,
        conditions=lambda indices: {**masked(indices), **size(64), "guidance_scale": 1.0},
        cfg=lambda indices: {**masked(indices, negative=True), "guidance_scale": 4.0},
        start=(4, 8, 8),
    ),
    "Lumina2Pipeline": Case(
        _lumina2,
        conditions=lambda indices: {**masked(indices), **size(64), "guidance_scale": 1.0},
        # Its default, a rescaling of what classifier-free guidance gives by a ratio of norms, is not linear.
        cfg=lambda indices: {**masked(indices, negative=True), "guidance_scale": 4.0, "cfg_normalization": False},
        start=(4, 8, 8),
    ),
    "AuraFlowPipeline": Case(
        _aura_flow,
        conditions=lambda indices: {**masked(indices), **size(64), "guidance_scale": 1.0},
        cfg=lambda indices: {**masked(indices, negative=True), "guidance_scale": 4.0},
        start=(4, 8, 8),
    ),
    "CogView4Pipeline": Case(
        _cog_view4,
        conditions=lambda indices: {**embeds(indices), **size(64), "guidance_scale": 1.0},
        cfg=lambda indices: {**embeds(indices, negative=True), "guidance_scale": 4.0},
        start=(4, 8, 8),
    ),
    "ChromaPipeline": Case(lambda: _chroma(diffusers.ChromaPipeline), start=(16, 16), **_CHROMA_CALL),
    "ChromaImg2ImgPipeline": Case(
        lambda: _chroma(diffusers.ChromaImg2ImgPipeline),
        conditions=lambda indices: {**_CHROMA_CALL["conditions"](indices), **picture(indices)},
        cfg=_CHROMA_CALL["cfg"],
        start=None,
    ),
    "HiDreamImagePipeline": Case(
        _hidream,
        conditions=lambda indices: {**_hidream_embeds(indices), **size(64), "guidance_scale": 1.0},
        cfg=lambda indices: {**_hidream_embeds(indices, negative=True), "guidance_scale": 4.0},
        start=(4, 8, 8),
    ),
    "Kandinsky5T2IPipeline": Case(
        _kandinsky5,
        conditions=lambda indices: {**_kandinsky_embeds(indices), **size(64), "guidance_scale": 1.0},
        cfg=lambda indices: {**_kandinsky_embeds(indices, negative=True), "guidance_scale": 4.0},
        start=(1, 8, 8, 4),
    ),
    "OvisImagePipeline": Case(
        _ovis,
        conditions=lambda indices: {
            **embeds(indices),
            **size(64),
            "negative_prompt": None,
            "guidance_scale": 1.0,
        },
        cfg=lambda indices: {**embeds(indices, negative=True), "guidance_scale": 4.0},
        start=(16, 16),
    ),
    "Cosmos2TextToImagePipeline": Case(
        _cosmos2,
        conditions=lambda indices: {**embeds(indices), **size(64), "guidance_scale": 1.0},
        cfg=lambda indices: {**embeds(indices, negative=True), "guidance_scale": 4.0},
        start=(4, 1, 8, 8),
    ),
}


def _cog_view3() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=8,
        pos_embed_max_size=8,
    ).eval()
    scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    return diffusers.CogView3PlusPipeline(
        transformer=transformer, scheduler=scheduler, vae=None, text_encoder=None, tokenizer=None
    )


GENERIC: dict[str, Case] = {
    "CogView3PlusPipeline": Case(
        _cog_view3,
        conditions=lambda indices: {**embeds(indices), **size(64), "guidance_scale": 1.0},
        cfg=lambda indices: {**embeds(indices, negative=True), "guidance_scale": 4.0},
        start=(4, 8, 8),
    ),
}
