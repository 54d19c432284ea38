"""Tiny random pipelines of every family the engine knows, each through its real diffusers class.

A case builds a pipeline without text encoders: prompts come as random embeddings, one a sample, so that all samples
differ. Weights are random but fixed; `seed` of a call fixes noise and embeddings sample by sample, so that sample i of
a batch is the i-th sample on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from helpers.tiny import random_head, random_lora, tiny_transformer
from nft_pipeline.adapter import Adapter, AdapterConfig, BaseModel, fingerprint
from nft_pipeline.families import family_of

WORDS, WIDTH = 5, 16


def rows(indices: list[int], *shape: int, seed: int = 0) -> Tensor:
    """Random rows, each fixed by its index alone."""
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(1000 * seed + i)) for i in indices])


@dataclass(frozen=True)
class Case:
    """One pipeline class.

    Args:
        build: makes the pipeline.
        conditions: the call's arguments for samples of these indices.
        cfg: further arguments that switch classifier-free guidance on, for samples of these indices.
        start: whether the call takes `latents` of this shape a sample; None if it starts from a picture.
        tap: the module an alpha head reads.
    """

    build: Callable[[], Any]
    conditions: Callable[[list[int]], dict[str, Any]]
    cfg: Callable[[list[int]], dict[str, Any]]
    start: tuple[int, ...] | None
    tap: str = "norm_out"

    def pipe(self) -> Any:
        pipe = self.build()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sample(self, pipe: Any, indices: list[int] | None = None, *, cfg: bool = False, **kwargs: Any) -> Tensor:
        """Latents of a call with fixed noise."""
        indices = [0] if indices is None else indices
        call = {"num_inference_steps": 3, "output_type": "latent", **self.conditions(indices)}
        call["generator"] = [torch.Generator().manual_seed(500 + i) for i in indices]
        if self.start is not None:
            call["latents"] = rows(indices, *self.start, seed=1)
        return pipe(**{**call, **(self.cfg(indices) if cfg else {}), **kwargs}).images


def denoiser_of(pipe: Any) -> nn.Module:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def _vae(channels: int = 4) -> diffusers.AutoencoderKL:
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(4,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        latent_channels=channels,
        norm_num_groups=1,
        shift_factor=0.06,
        scaling_factor=1.5,
    ).eval()


def _unet(**kwargs: Any) -> diffusers.UNet2DConditionModel:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **kwargs,
    ).eval()


def _ddim() -> diffusers.DDIMScheduler:
    return diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)


def _euler_v() -> diffusers.EulerDiscreteScheduler:
    return diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", steps_offset=1)


def _stable_diffusion(cls: Any, scheduler: Callable[[], Any] = _ddim) -> Any:
    return cls(
        vae=_vae(),
        text_encoder=None,
        tokenizer=None,
        unet=_unet(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _stable_diffusion_control_net() -> Any:
    pipe = _stable_diffusion(diffusers.StableDiffusionPipeline)
    torch.manual_seed(3)
    control_net = diffusers.ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4,))
    for block in control_net.controlnet_down_blocks:  # these start at zero, and a ControlNet would do nothing
        torch.nn.init.normal_(block.weight)
    return diffusers.StableDiffusionControlNetPipeline(
        **pipe.components, controlnet=control_net.eval(), requires_safety_checker=False
    )


def _sdxl(cls: Any) -> Any:
    unet = _unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + WIDTH
    )
    return cls(
        vae=_vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(),
        add_watermarker=False,
    )


def _sd3(cls: Any) -> Any:
    return cls(
        transformer=tiny_transformer(channels=16),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(16),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def _flux(cls: Any) -> Any:
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
    ).eval()
    return cls(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )


def _qwen_image() -> Any:
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
    return diffusers.QwenImagePipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )


def _embeds(indices: list[int], *, pooled: bool = False, negative: bool = False) -> dict[str, Any]:
    prefix, seed = ("negative_", 4) if negative else ("", 2)
    made = {f"{prefix}prompt_embeds": rows(indices, WORDS, WIDTH, seed=seed)}
    if pooled:
        made[f"{prefix}pooled_prompt_embeds"] = rows(indices, WIDTH, seed=seed + 1)
    return made


def _size(edge: int = 8) -> dict[str, Any]:
    return {"height": edge, "width": edge}


def _picture(indices: list[int]) -> dict[str, Any]:
    return {"image": rows(indices, 3, 8, 8, seed=6).sigmoid(), "strength": 1.0}


def _inpainted(indices: list[int]) -> dict[str, Any]:
    mask = torch.zeros(len(indices), 1, 8, 8)
    mask[..., 4:] = 1.0
    return {**_picture(indices), "mask_image": mask}


def _control_net(indices: list[int]) -> dict[str, Any]:
    return {"image": rows(indices, 3, 8, 8, seed=6).sigmoid(), "controlnet_conditioning_scale": 0.7}


def _batched(
    *,
    pooled: bool,
    more: Callable[[list[int]], dict[str, Any]] = lambda indices: {},
    size: bool = True,
    channels: int = 4,
) -> dict[str, Any]:
    """Arguments of pipelines that double the batch under classifier-free guidance; `more` are the call's own."""
    return {
        "conditions": lambda indices: {
            **_embeds(indices, pooled=pooled),
            "guidance_scale": 1.0,
            **more(indices),
            **(_size() if size else {}),
        },
        "cfg": lambda indices: {**_embeds(indices, pooled=pooled, negative=True), "guidance_scale": 4.0},
        "start": None if "strength" in more([0]) else (channels, 8, 8),
    }


_UNET: dict[str, Any] = {"tap": "conv_norm_out"}
_FLUX_CALL: dict[str, Any] = {
    "conditions": lambda indices: {**_embeds(indices, pooled=True), **_size()},
    "cfg": lambda indices: {**_embeds(indices, pooled=True, negative=True), "true_cfg_scale": 4.0},
}

CASES: dict[str, Case] = {
    "StableDiffusionPipeline": Case(
        lambda: _stable_diffusion(diffusers.StableDiffusionPipeline), **_batched(pooled=False), **_UNET
    ),
    "StableDiffusionPipeline, v": Case(
        lambda: _stable_diffusion(diffusers.StableDiffusionPipeline, _euler_v),
        **_batched(pooled=False),
        **_UNET,
    ),
    "StableDiffusionImg2ImgPipeline": Case(
        lambda: _stable_diffusion(diffusers.StableDiffusionImg2ImgPipeline),
        **_batched(pooled=False, more=_picture, size=False),
        **_UNET,
    ),
    "StableDiffusionInpaintPipeline": Case(
        lambda: _stable_diffusion(diffusers.StableDiffusionInpaintPipeline),
        **_batched(pooled=False, more=_inpainted),
        **_UNET,
    ),
    "StableDiffusionControlNetPipeline": Case(
        _stable_diffusion_control_net, **_batched(pooled=False, more=_control_net), **_UNET
    ),
    "StableDiffusionXLPipeline": Case(
        lambda: _sdxl(diffusers.StableDiffusionXLPipeline), **_batched(pooled=True), **_UNET
    ),
    "StableDiffusionXLImg2ImgPipeline": Case(
        lambda: _sdxl(diffusers.StableDiffusionXLImg2ImgPipeline),
        **_batched(pooled=True, more=_picture, size=False),
        **_UNET,
    ),
    "StableDiffusionXLInpaintPipeline": Case(
        lambda: _sdxl(diffusers.StableDiffusionXLInpaintPipeline), **_batched(pooled=True, more=_inpainted), **_UNET
    ),
    "StableDiffusion3Pipeline": Case(
        lambda: _sd3(diffusers.StableDiffusion3Pipeline), **_batched(pooled=True, channels=16)
    ),
    "StableDiffusion3Img2ImgPipeline": Case(
        lambda: _sd3(diffusers.StableDiffusion3Img2ImgPipeline), **_batched(pooled=True, channels=16, more=_picture)
    ),
    "StableDiffusion3InpaintPipeline": Case(
        lambda: _sd3(diffusers.StableDiffusion3InpaintPipeline), **_batched(pooled=True, channels=16, more=_inpainted)
    ),
    "FluxPipeline": Case(lambda: _flux(diffusers.FluxPipeline), start=(16, 16), **_FLUX_CALL),
    "FluxImg2ImgPipeline": Case(
        lambda: _flux(diffusers.FluxImg2ImgPipeline),
        conditions=lambda indices: {**_FLUX_CALL["conditions"](indices), **_picture(indices)},
        cfg=_FLUX_CALL["cfg"],
        start=None,
    ),
    "FluxInpaintPipeline": Case(
        lambda: _flux(diffusers.FluxInpaintPipeline),
        conditions=lambda indices: {**_FLUX_CALL["conditions"](indices), **_inpainted(indices)},
        cfg=_FLUX_CALL["cfg"],
        start=None,
    ),
    "QwenImagePipeline": Case(
        _qwen_image,
        conditions=lambda indices: {
            "prompt_embeds": rows(indices, WORDS, WIDTH, seed=2),
            "prompt_embeds_mask": torch.ones(len(indices), WORDS, dtype=torch.long),
            **_size(64),
        },
        cfg=lambda indices: {
            "negative_prompt_embeds": rows(indices, WORDS, WIDTH, seed=4),
            "negative_prompt_embeds_mask": torch.ones(len(indices), WORDS, dtype=torch.long),
            "true_cfg_scale": 4.0,
        },
        start=(16, 16),
    ),
}


def lora_for(pipe: Any, *, seed: int = 7) -> dict[str, Tensor]:
    """A random LoRA on the layers the pipeline's family trains."""
    denoiser = denoiser_of(pipe)
    return random_lora(denoiser, seed=seed, component=family_of(denoiser).component)


def adapter_for(case: Case, pipe: Any, *, kind: Any = "positive", tilt: float = 2.0) -> Adapter:
    """A random adapter for a case's pipeline, with a head whose alpha depends on sample, noise level and text."""
    denoiser = denoiser_of(pipe)
    family = family_of(denoiser)
    seen: list[Tensor] = []
    hook = denoiser.get_submodule(case.tap).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    case.sample(pipe, num_inference_steps=1)
    hook.remove()
    head = None
    if kind == "positive":
        width = seen[0].shape[1] if seen[0].ndim == 4 else seen[0].shape[-1]
        head = random_head(width, text_dim=WIDTH)
        head.config = replace(head.config, tap=case.tap)
    config = AdapterConfig(
        kind=kind,
        name="tiny",
        beta=2 / tilt,
        tilt=tilt,
        base_model=BaseModel(id="tiny/zoo", revision=None, fingerprint=fingerprint(denoiser)),
        denoiser=family.denoiser,
        prediction=family.prediction,
        component=family.component,
        rank=2,
        reward={"name": "nothing", "description": "random weights", "normaliser": "none"},
        guidance_scale=1.0,
        resolution=(8, 8),
        licence="apache-2.0",
    )
    return Adapter(config=config, lora=lora_for(pipe), head=head)


def load_ordinarily(pipe: Any, lora: dict[str, Tensor], name: str, active: list[str]) -> None:
    """What a user does with a LoRA of their own, through diffusers and peft."""
    denoiser: Any = denoiser_of(pipe)
    denoiser.load_lora_adapter(dict(lora), prefix=family_of(denoiser).component, adapter_name=name)
    denoiser.set_adapters(active)
