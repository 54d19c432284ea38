"""Cases for the table of pipeline classes that neither diffusers' tests nor the zoo build: most are made of a case's
parts in the zoo, with what the class takes besides. helpers/pipeline_table.py measures them, the suite does not."""

from __future__ import annotations

import diffusers

from helpers.by_hand_case import (
    ZOO,
    CaseByHand,
    TestByHand,
    called_as,
    like,
    no_more,
)
from helpers.by_hand_parts import (
    control_net_for_masks,
    control_union,
    controlled_cogview4,
    controls,
    edited_longcat,
    edited_wan,
    ernie,
    ernie_texts,
    half_painted,
    heard_as_spectrogram,
    hunyuan_from_a_picture,
    inpainted_32,
    kandinsky6,
    kandinsky6_texts,
    kandinsky_texts,
    kolors_from_a_picture,
    music_texts,
    no_size,
    painted_chroma,
    picture_file,
    seen,
    unconditional,
    upscaler,
    vq,
    z_control,
)
from helpers.zoo_case import Case, batched, inpainted, kl_vae, picture, rows, size
from helpers.zoo_unets import stable_diffusion, unet

BY_HAND: dict[str, Case | TestByHand] = {
    "AltDiffusionPipeline": like("StableDiffusionPipeline", diffusers.AltDiffusionPipeline),
    "AltDiffusionImg2ImgPipeline": like("StableDiffusionImg2ImgPipeline", diffusers.AltDiffusionImg2ImgPipeline),
    "LDMPipeline": unconditional(diffusers.LDMPipeline, diffusers.DDIMScheduler, vqvae=vq),
    "LDMSuperResolutionPipeline": unconditional(
        diffusers.LDMSuperResolutionPipeline,
        diffusers.DDIMScheduler,
        channels=6,
        vqvae=vq,
        more=lambda indices: {"image": picture(indices)["image"]},
    ),
    "ScoreSdeVePipeline": unconditional(
        diffusers.ScoreSdeVePipeline, lambda: diffusers.ScoreSdeVeScheduler(sigma_max=2.0), own_rows=False
    ),
    "KarrasVePipeline": unconditional(diffusers.KarrasVePipeline, diffusers.KarrasVeScheduler, steps=3),
    "RePaintPipeline": unconditional(
        diffusers.RePaintPipeline, diffusers.RePaintScheduler, steps=6, more=half_painted, own_rows=False
    ),
    "ConsistencyModelPipeline": unconditional(
        diffusers.ConsistencyModelPipeline, diffusers.CMStochasticIterativeScheduler
    ),
    "StableDiffusionUpscalePipeline": Case(
        upscaler,
        **batched(pooled=False, more=lambda indices: {"image": picture(indices)["image"]}, sized=False),
    ),
    "StableDiffusionParadigmsPipeline": Case(
        lambda: stable_diffusion(diffusers.StableDiffusionParadigmsPipeline, diffusers.DDIMParallelScheduler),
        **batched(pooled=False),
    ),
    "StableDiffusionDepth2ImgPipeline": like(
        "StableDiffusionImg2ImgPipeline",
        diffusers.StableDiffusionDepth2ImgPipeline,
        more=lambda indices: {"depth_map": rows(indices, 8, 8, seed=7)},
        unet=lambda: unet(in_channels=5),
    ),
    **{
        f"StableDiffusionXLControlNetUnion{task}Pipeline": like(
            f"StableDiffusionXL{task}Pipeline",
            getattr(diffusers, f"StableDiffusionXLControlNetUnion{task}Pipeline"),
            more=controls,
            case={"own_rows": False},  # its attention over pictures is over those of the batch
            controlnet=control_union,
            add_watermarker=lambda: False,
        )
        for task in ("", "Img2Img", "Inpaint")
    },
    "ZImageControlNetPipeline": like(
        "ZImagePipeline",
        diffusers.ZImageControlNetPipeline,
        more=lambda indices: {"control_image": seen(indices, 16), **size(16)},
        case={"start": (4, 16, 16)},
        controlnet=z_control(4),
        vae=kl_vae,
    ),
    "ZImageControlNetInpaintPipeline": like(
        "ZImagePipeline",
        diffusers.ZImageControlNetInpaintPipeline,
        more=lambda indices: {
            "image": seen(indices, 16),
            "control_image": seen(indices, 16),
            "mask_image": (seen(indices, 16)[:, :1] > 0.5).float(),
            **size(16),
        },
        case={"start": (4, 16, 16)},
        controlnet=z_control(9),
        vae=kl_vae,
    ),
    "CogView4ControlPipeline": called_as(
        "CogView4Pipeline",
        controlled_cogview4,
        lambda indices: {**size(16), "control_image": seen(indices, 16)},
        start=(4, 16, 16),
    ),
    "ChromaInpaintPipeline": called_as("ChromaImg2ImgPipeline", painted_chroma, inpainted),
    "KolorsPipeline": like("StableDiffusionXLPipeline", diffusers.KolorsPipeline),
    "KolorsImg2ImgPipeline": Case(kolors_from_a_picture, **batched(pooled=True, more=picture, sized=False)),
    "LucyEditPipeline": called_as(
        "WanPipeline", edited_wan, lambda indices: {"video": rows(indices, 5, 3, 64, 64, seed=6).sigmoid()}
    ),
    "Kandinsky5I2IPipeline": TestByHand(
        "Kandinsky5I2IPipeline",
        inputs=kandinsky_texts,
        prepare=lambda pipe: setattr(pipe, "resolutions", [(64, 64)]),
    ),
    "Kandinsky5I2VPipeline": TestByHand("Kandinsky5I2VPipeline", inputs=kandinsky_texts),
    "Kandinsky5T2VPipeline": TestByHand("Kandinsky5T2VPipeline", inputs=kandinsky_texts),
    "QwenImageControlNetInpaintPipeline": TestByHand(
        "QwenImageControlNetPipeline",
        inputs=lambda: {"control_mask": inpainted_32()},
        parts=control_net_for_masks,
    ),
    "CycleDiffusionPipeline": TestByHand(
        "StableDiffusionImg2ImgPipeline",
        inputs=lambda: {"source_prompt": "a drawing of a cat", "source_guidance_scale": 1.0},
        parts=lambda: {"scheduler": diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)},
    ),
    "VideoToVideoSDPipeline": TestByHand(
        "VideoToVideoSDPipeline", inputs=lambda: {"output_type": "latent", "strength": 1.0}
    ),
    "AudioLDMPipeline": TestByHand("AudioLDMPipeline", prepare=heard_as_spectrogram),
    "I2VGenXLPipeline": TestByHand("I2VGenXLPipeline", inputs=lambda: {"clip_skip": None}),
    "MusicLDMPipeline": TestByHand("MusicLDMPipeline", inputs=music_texts),
    "ErnieImagePipeline": Case(
        ernie,
        conditions=lambda indices: {**ernie_texts(indices), **size(64), "guidance_scale": 1.0},
        cfg=lambda indices: {**ernie_texts(indices, "negative_", 4), "guidance_scale": 4.0},
        start=(4, 4, 4),
    ),
    "LongCatImageEditPipeline": Case(
        edited_longcat,
        conditions=lambda indices: {
            "prompt": [f"2 {i}" for i in indices],
            "image": picture_file(16),
            "guidance_scale": 1.0,
        },
        cfg=lambda indices: {"negative_prompt": [f"3 {i}" for i in indices], "guidance_scale": 4.0},
        start=None,
        alone=True,
    ),
    "HunyuanVideo15ImageToVideoPipeline": CaseByHand(
        hunyuan_from_a_picture,
        conditions=lambda indices: {**no_size(ZOO["HunyuanVideo15Pipeline"])(indices), "image": picture_file()},
        cfg=no_more,
        start=None,
        alone=True,
    ),
    "Kandinsky6TI2VAPipeline": Case(
        kandinsky6,
        conditions=lambda indices: {
            **kandinsky6_texts(indices),
            **size(64),
            "num_frames": 5,
            "guidance_scale": 1.0,
        },
        cfg=lambda indices: {**kandinsky6_texts(indices, "negative_", 4), "guidance_scale": 4.0},
        start=None,
    ),
}
