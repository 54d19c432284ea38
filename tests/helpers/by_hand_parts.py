"""What cases built by hand are made of: models that no test of diffusers builds, and arguments of their calls."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import diffusers
import PIL.Image
import torch
from torch import Tensor

from helpers.by_hand_case import (
    ZOO,
    Arguments,
    Unconditional,
    made,
    no_more,
    parts_of,
)
from helpers.zoo_case import WIDTH, WORDS, Case, awake, inpainted, kl_vae, picture, rows
from helpers.zoo_unets import stable_diffusion, unet


def small_unet(channels: int = 3, out: int | None = None, **more: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=out or channels,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **more,
    ).eval()


def vq() -> Any:
    torch.manual_seed(0)
    return diffusers.VQModel(
        block_out_channels=(4,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        latent_channels=3,
        num_vq_embeddings=8,
        norm_num_groups=1,
    ).eval()


def unconditional(
    cls: Any,
    scheduler: Any,
    *,
    channels: int = 3,
    steps: int = 2,
    more: Arguments = no_more,
    own_rows: bool = True,
    **parts: Any,
) -> Case:
    def build() -> Any:
        made = {name: part() for name, part in parts.items()}
        return cls(unet=small_unet(channels, 3), scheduler=scheduler(), **made)

    return Unconditional(build, more, cfg=no_more, start=None, steps=steps, own_rows=own_rows)


def half_painted(indices: list[int]) -> dict[str, Any]:
    return {"image": picture(indices)["image"] * 2 - 1, "mask_image": inpainted(indices)["mask_image"]}


def upscaler() -> Any:
    pipe = stable_diffusion(diffusers.StableDiffusionPipeline)
    parts = {**pipe.components, "unet": unet(in_channels=7, num_class_embeds=1000)}
    return made(diffusers.StableDiffusionUpscalePipeline, parts, low_res_scheduler=diffusers.DDPMScheduler())


def control_union() -> Any:
    torch.manual_seed(3)
    return awake(
        diffusers.ControlNetUnionModel(
            in_channels=4,
            block_out_channels=(8,),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            norm_num_groups=4,
            attention_head_dim=4,
            transformer_layers_per_block=1,
            down_block_types=("DownBlock2D",),
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
            conditioning_embedding_out_channels=(4,),
            num_trans_channel=8,
            num_trans_head=2,
            num_proj_channel=8,
        )
    )


def controls(indices: list[int]) -> dict[str, Any]:
    return {
        "control_image": [rows(indices, 3, 8, 8, seed=6).sigmoid()],
        "control_mode": [0],
        "controlnet_conditioning_scale": 0.7,
    }


def z_control(channels: int) -> Callable[[], Any]:
    def make() -> Any:
        torch.manual_seed(3)
        net = diffusers.ZImageControlNetModel(
            control_layers_places=[0],
            control_refiner_layers_places=[0],
            control_in_dim=channels,
            add_control_noise_refiner="control_noise_refiner" if channels > 4 else None,
            dim=32,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
        )
        return awake(net)

    return make


def controlled_cogview4() -> Any:
    torch.manual_seed(0)
    parts = parts_of("CogView4Pipeline")
    config = {**parts["transformer"].config, "in_channels": 8}
    parts["transformer"] = awake(diffusers.CogView4Transformer2DModel.from_config(config))
    return made(diffusers.CogView4ControlPipeline, parts, vae=kl_vae())


def edited_wan() -> Any:
    torch.manual_seed(0)
    parts = parts_of("WanImageToVideoPipeline")
    config = {**parts_of("WanPipeline")["transformer"].config, "in_channels": 8}
    parts["transformer"] = awake(diffusers.WanTransformer3DModel.from_config(config))
    return made(diffusers.LucyEditPipeline, parts)


def painted_chroma() -> Any:
    pipe = made(diffusers.ChromaInpaintPipeline, parts_of("ChromaImg2ImgPipeline"))
    pipe.transformer.register_to_config(guidance_embeds=False)  # the class asks for it, and no Chroma has it
    return pipe


def kolors_from_a_picture() -> Any:
    """The class does not hand on pooled embeddings that it is given, so they are made of the others."""
    pipe = made(diffusers.KolorsImg2ImgPipeline, parts_of("StableDiffusionXLImg2ImgPipeline"))
    encode = pipe.encode_prompt

    def encode_prompt(**given: Any) -> Any:
        signs = [sign for sign in ("", "negative_") if given[f"{sign}prompt_embeds"] is not None]
        pooled = {f"{sign}pooled_prompt_embeds": given[f"{sign}prompt_embeds"].mean(1) for sign in signs}
        return encode(**given, **pooled)

    pipe.encode_prompt = encode_prompt
    return pipe


def seen(indices: list[int], edge: int) -> Tensor:
    return picture(indices, edge)["image"]


def kandinsky_texts() -> dict[str, Any]:
    made: dict[str, Any] = {"prompt": None}
    for sign, seed in (("", 2), ("negative_", 4)):
        made[f"{sign}prompt_embeds_qwen"] = rows([0], WORDS, 32, seed=seed)
        made[f"{sign}prompt_embeds_clip"] = rows([0], 16, seed=seed)
        made[f"{sign}prompt_cu_seqlens"] = torch.tensor([0, WORDS], dtype=torch.int32)
    return made


def music_texts() -> dict[str, Any]:
    signs = {"": 2, "negative_": 4}
    made = {f"{sign}prompt_embeds": rows([0], 32, seed=seed) for sign, seed in signs.items()}
    return {**made, "prompt": None, "negative_prompt": None, "output_type": "latent"}


def control_net_for_masks() -> dict[str, Any]:
    torch.manual_seed(0)
    net = diffusers.QwenImageControlNetModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
        extra_condition_channels=4,
    )
    return {"controlnet": awake(net)}


def ernie() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=16,
        in_channels=4,
        out_channels=4,
        text_in_dim=WIDTH,
        rope_axes_dim=(8, 4, 4),
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=4.0)
    return made(diffusers.ErnieImagePipeline, {"transformer": awake(transformer), "scheduler": scheduler})


def ernie_texts(indices: list[int], sign: str = "", seed: int = 2) -> dict[str, Any]:
    return {f"{sign}prompt_embeds": list(rows(indices, WORDS, WIDTH, seed=seed))}


def kandinsky6() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.Kandinsky6Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=WIDTH,
        in_text_dim2=WIDTH,
        time_dim=16,
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(2, 2, 4),
        in_audio_dim=4,
        out_audio_dim=4,
        model_dim_a=16,
        time_dim_a=16,
        ff_dim_a=32,
        axes_dims_a=(2, 2, 4),
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0)
    pipe = made(diffusers.Kandinsky6TI2VAPipeline, {"transformer": awake(transformer), "scheduler": scheduler})
    pipe.audio_vae = pipe.vocoder = object()  # it asks for them, and needs them only for what is heard in the end
    return pipe


def kandinsky6_texts(indices: list[int], sign: str = "", seed: int = 2) -> dict[str, Any]:
    return {
        f"{sign}prompt_embeds": rows(indices, WORDS, WIDTH, seed=seed),
        f"{sign}pooled_prompt_embeds": rows(indices, WIDTH, seed=seed + 1),
    }


class _NoProcessor:
    image_processor = None


def edited_longcat() -> Any:
    cls: Any = diffusers.LongCatImageEditPipeline
    sys.modules[cls.__module__].calculate_dimensions = lambda area, ratio: (16, 16)  # type: ignore[attr-defined]
    text_encoder = ZOO["LongCatImagePipeline"].pipe()._encode_prompt
    pipe = made(cls, {**parts_of("LongCatImagePipeline"), "vae": kl_vae(16)}, text_processor=_NoProcessor())
    pipe._encode_prompt = lambda prompts, image: text_encoder(prompts)
    return pipe


def hunyuan_from_a_picture() -> Any:
    pipe = made(diffusers.HunyuanVideo15ImageToVideoPipeline, parts_of("HunyuanVideo15Pipeline"))
    pipe.vision_num_semantic_tokens = 4
    pipe.encode_image = lambda batch_size, **_: rows([0], 4, WIDTH, seed=9).repeat(batch_size, 1, 1)
    pipe.video_processor.calculate_default_height_width = lambda *_, **__: (32, 32)
    return pipe


def no_size(case: Case) -> Arguments:
    return lambda indices: {n: v for n, v in case.conditions(indices).items() if n not in ("height", "width")}


def heard_as_spectrogram(pipe: Any) -> None:
    """Without the vocoder, whose random weights hear nearly nothing."""
    pipe.mel_spectrogram_to_waveform = lambda mel: mel.flatten(1)


def inpainted_32() -> Tensor:
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 16:] = 1.0
    return mask


def picture_file(edge: int = 32) -> PIL.Image.Image:
    pixels = (rows([0], edge, edge, 3, seed=6)[0].sigmoid() * 255).to(torch.uint8).numpy()
    return PIL.Image.fromarray(pixels)
