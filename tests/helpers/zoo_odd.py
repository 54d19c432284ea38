"""Tiny pipelines that ask of their denoiser what others do not: they pop from its inputs, keep its keys and values,
give it the guidance scale, have it draw sound too, fold views into its batch, or count time in a way of their own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import PIL.Image
import torch
from torch import nn

from helpers import zoo_images, zoo_unets
from helpers.zoo_case import (
    WIDTH,
    WORDS,
    Case,
    awake,
    batched,
    embeds,
    kl_vae,
    masked,
    picture,
    rows,
    size,
)


def _t2i_adapter() -> Any:
    pipe = zoo_unets.stable_diffusion(diffusers.StableDiffusionPipeline)
    torch.manual_seed(3)
    adapter = diffusers.T2IAdapter(in_channels=3, channels=[8], num_res_blocks=1, downscale_factor=1)
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    return diffusers.StableDiffusionAdapterPipeline(**parts, adapter=awake(adapter), requires_safety_checker=False)


def _t2i_adapter_xl() -> Any:
    pipe = zoo_unets.sdxl(diffusers.StableDiffusionXLPipeline)
    torch.manual_seed(3)
    adapter = diffusers.T2IAdapter(
        in_channels=3, channels=[8], num_res_blocks=1, downscale_factor=1, adapter_type="full_adapter"
    )
    return diffusers.StableDiffusionXLAdapterPipeline(**pipe.components, adapter=awake(adapter))


def _panorama() -> Any:
    pipe = zoo_unets.stable_diffusion(diffusers.StableDiffusionPanoramaPipeline)
    pipe.vae_scale_factor = 8
    return pipe


def _sana_sprint() -> Any:
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
        guidance_embeds=True,
        timestep_scale=1000.0,
        qk_norm="rms_norm_across_heads",
    ).eval()
    return diffusers.SanaSprintPipeline(
        transformer=transformer, scheduler=diffusers.SCMScheduler(), vae=None, text_encoder=None, tokenizer=None
    )


class _Processor:
    """In the place of Qwen-Image 2.1's processor, which its constructor asks for the tokens of its template."""

    def __init__(self) -> None:
        self.tokenizer = SimpleNamespace(encode=lambda text: [0])

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> list[list[int]]:
        return [[0]]


def _qwen_image_21() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=WIDTH,
        mlp_ratio=2,
        axes_dims_rope=(8, 4, 4),
    )
    return diffusers.QwenImage21Pipeline(
        transformer=awake(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        processor=_Processor(),
    )


class _Part(nn.Module):
    """What pipelines ask of their parts."""

    dtype = torch.float32
    device = torch.device("cpu")


class _Bare(_Part):
    """In the place of a part of LTX-2 that a call for latents does not run: its sizes alone."""

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.latents_mean, self.latents_std = torch.zeros(1), torch.ones(1)
        for name, value in values.items():
            setattr(self, name, value)


class _Connectors(_Part):
    """In the place of LTX-2's connectors, which adapt the text to both modalities."""

    def forward(self, text: torch.Tensor, mask: torch.Tensor, **_: Any) -> tuple[torch.Tensor, ...]:
        return text, text, mask


def _ltx2() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=WIDTH,
    )
    config = SimpleNamespace(scaling_factor=1.0, mel_bins=4, latent_channels=4, sample_rate=16000, mel_hop_length=160)
    return diffusers.LTX2Pipeline(
        transformer=awake(transformer),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_Bare(spatial_compression_ratio=32, temporal_compression_ratio=8, config=config),
        audio_vae=_Bare(mel_compression_ratio=4, temporal_compression_ratio=4, config=config),
        text_encoder=None,
        tokenizer=None,
        connectors=_Connectors(),
        vocoder=None,
    )


LTX2_ALONE = {"guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0}
LTX2_ALONE |= {f"audio_{name}": value for name, value in LTX2_ALONE.items()}


def _ltx2_call(indices: list[int]) -> dict[str, Any]:
    return {
        **masked(indices),
        **size(64),
        "num_frames": 9,
        "audio_latents": rows(indices, 9, 4, seed=8),
        "spatio_temporal_guidance_blocks": [0],
        **LTX2_ALONE,
    }


class _SeesPictures(_Part):
    """In the place of Stable Video Diffusion's CLIP: the means of a picture's colours, repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, pictures: torch.Tensor) -> Any:
        means = pictures.flatten(2).mean(2)
        return SimpleNamespace(image_embeds=means.repeat(1, WIDTH // 3 + 1)[:, :WIDTH])


class _Features:
    """In the place of its feature extractor."""

    def __call__(self, images: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(pixel_values=images)


def _stable_video() -> Any:
    torch.manual_seed(0)
    unet = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",),
        up_block_types=("CrossAttnUpBlockSpatioTemporal",),
        block_out_channels=(32,),
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        num_attention_heads=2,
        num_frames=2,
    ).eval()
    scheduler = diffusers.EulerDiscreteScheduler(
        prediction_type="v_prediction",
        timestep_type="continuous",
        timestep_spacing="leading",
        sigma_min=0.002,
        sigma_max=700.0,
        use_karras_sigmas=True,
    )
    return diffusers.StableVideoDiffusionPipeline(
        unet=unet, scheduler=scheduler, vae=kl_vae(), image_encoder=_SeesPictures(), feature_extractor=_Features()
    )


def _stable_video_call(indices: list[int]) -> dict[str, Any]:
    seen = picture(indices)["image"]
    return {"image": seen, **size(), "num_frames": 2, "max_guidance_scale": 1.0, "noise_aug_strength": 0.0}


def _bria() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.BriaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
    ).eval()
    return diffusers.BriaPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=kl_vae(),
        text_encoder=None,
        tokenizer=None,
    )


def _adapter_picture(indices: list[int]) -> dict[str, Any]:
    return {"image": picture(indices)["image"], "adapter_conditioning_scale": 0.7}


def _masked_text(indices: list[int], *, negative: bool = False) -> dict[str, Any]:
    prefix = "negative_" if negative else ""
    mask = torch.ones(len(indices), WORDS, dtype=torch.bool)
    return {**embeds(indices, negative=negative), f"{prefix}prompt_embeds_mask": mask}


# Over denoisers that have a file in nft_pipeline/families/known.
CASES: dict[str, Case] = {
    "StableDiffusionAdapterPipeline": Case(_t2i_adapter, **batched(pooled=False, more=_adapter_picture)),
    "StableDiffusionXLAdapterPipeline": Case(_t2i_adapter_xl, **batched(pooled=True, more=_adapter_picture)),
    "SanaSprintPipeline": Case(
        _sana_sprint,
        # At its own guidance_scale, 4.5, which is an input of the model: nothing is doubled.
        conditions=lambda indices: {
            **masked(indices),
            **size(256),
            "use_resolution_binning": False,
            "intermediate_timesteps": None,
        },
        cfg=lambda indices: {},
        start=(4, 8, 8),
    ),
}
# Over others.
GENERIC: dict[str, Case] = {
    "QwenImage21Pipeline, without its cache": Case(
        _qwen_image_21,
        conditions=lambda indices: {
            **_masked_text(indices),
            **size(64),
            "use_kv_cache": False,
        },
        cfg=lambda indices: {**_masked_text(indices, negative=True), "true_cfg_scale": 4.0},
        start=(16, 4),
    ),
    "LTX2Pipeline": Case(
        _ltx2,
        conditions=_ltx2_call,
        cfg=lambda indices: {**masked(indices, negative=True), "guidance_scale": 4.0, "audio_guidance_scale": 4.0},
        start=(8, 4),
    ),
    "StableVideoDiffusionPipeline": Case(
        _stable_video,
        conditions=_stable_video_call,
        cfg=lambda indices: {"max_guidance_scale": 3.0},
        start=(2, 4, 8, 8),
    ),
    "BriaPipeline": Case(
        _bria,
        conditions=lambda indices: {**embeds(indices), **size(), "guidance_scale": 1.0},
        cfg=lambda indices: {**embeds(indices, negative=True), "guidance_scale": 4.0},
        start=(16, 16),
    ),
}

# Not right with everything, so they are not among those above.
QWEN_IMAGE_21 = Case(
    _qwen_image_21,
    conditions=lambda indices: {**_masked_text(indices), **size(64)},
    cfg=lambda indices: {**_masked_text(indices, negative=True), "true_cfg_scale": 4.0},
    start=(16, 4),
)
FLUX2_KLEIN_KV = Case(
    lambda: zoo_images.flux2(diffusers.Flux2KleinKVPipeline),
    conditions=lambda indices: {
        **embeds(indices),
        **size(),
        "image": [PIL.Image.fromarray((255 * picture([0], 64)["image"][0].permute(1, 2, 0)).byte().numpy())],
    },
    cfg=lambda indices: {},
    start=(16, 4, 4),
)
PANORAMA = Case(
    _panorama,
    conditions=lambda indices: {**embeds(indices), "height": 512, "width": 576, "guidance_scale": 1.0},
    cfg=lambda indices: {**embeds(indices, negative=True), "guidance_scale": 4.0},
    start=(4, 64, 72),
)
