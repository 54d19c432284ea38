"""Tiny pipelines made of the parts of others in the zoo. They go the same way as their siblings, and are tested
for what has to hold on every pipeline (helpers/properties.py) and no more."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers

from helpers import zoo_images, zoo_unets
from helpers.zoo_case import Case, batched, control_picture, inpainted, picture

_CASES = {**zoo_unets.CASES, **zoo_images.CASES}


def _of(sibling: str, cls: Any, **more: Any) -> Callable[[], Any]:
    """Builds a pipeline of another class from the parts of a case."""

    def build() -> Any:
        taken = inspect.signature(cls.__init__).parameters
        parts = _CASES[sibling].pipe().components
        return cls(**{name: part for name, part in parts.items() if name in taken}, **more)

    return build


def _like(sibling: str, cls: Any, more: Callable[[list[int]], dict[str, Any]], **parts: Any) -> Case:
    """A case called as its sibling is, with more arguments, and from a picture."""
    case = _CASES[sibling]
    return replace(
        case,
        build=_of(sibling, cls, **parts),
        conditions=lambda indices: {**case.conditions(indices), **more(indices)},
        start=None,
    )


def _controlled(from_picture: Callable[[list[int]], dict[str, Any]]) -> Callable[[list[int]], dict[str, Any]]:
    """Arguments of pipelines with a ControlNet that start from a picture."""

    def arguments(indices: list[int]) -> dict[str, Any]:
        control = control_picture(indices)
        return {**control, "control_image": control["image"], **from_picture(indices)}

    return arguments


def _consistency(cls: Any) -> Callable[[], Any]:
    """Latent consistency: the guidance scale is an input of the UNet."""

    def build() -> Any:
        pipe = zoo_unets.stable_diffusion(cls, diffusers.LCMScheduler)
        pipe.register_modules(unet=zoo_unets.unet(time_cond_proj_dim=8))
        return pipe

    return build


def _flux_control(cls: Any) -> Callable[[], Any]:
    return lambda: zoo_images.flux(cls, channels=32, out_channels=16)


_SAFE = {"requires_safety_checker": False}
_LCM_CALL: dict[str, Any] = {"original_inference_steps": 10}
CASES: dict[str, Case] = {
    "StableDiffusionControlNetImg2ImgPipeline": _like(
        "StableDiffusionControlNetPipeline",
        diffusers.StableDiffusionControlNetImg2ImgPipeline,
        _controlled(picture),
        **_SAFE,
    ),
    "StableDiffusionControlNetInpaintPipeline": _like(
        "StableDiffusionControlNetPipeline",
        diffusers.StableDiffusionControlNetInpaintPipeline,
        _controlled(inpainted),
        **_SAFE,
    ),
    "StableDiffusionXLControlNetImg2ImgPipeline": _like(
        "StableDiffusionXLControlNetPipeline",
        diffusers.StableDiffusionXLControlNetImg2ImgPipeline,
        _controlled(picture),
        add_watermarker=False,
    ),
    "StableDiffusionXLControlNetInpaintPipeline": _like(
        "StableDiffusionXLControlNetPipeline",
        diffusers.StableDiffusionXLControlNetInpaintPipeline,
        _controlled(inpainted),
        add_watermarker=False,
    ),
    "LatentConsistencyModelPipeline": Case(
        _consistency(diffusers.LatentConsistencyModelPipeline),
        conditions=lambda indices: {**batched(pooled=False)["conditions"](indices), **_LCM_CALL, "guidance_scale": 8.5},
        cfg=lambda indices: {},
        start=(4, 8, 8),
    ),
    "LatentConsistencyModelImg2ImgPipeline": Case(
        _consistency(diffusers.LatentConsistencyModelImg2ImgPipeline),
        conditions=lambda indices: {
            **batched(pooled=False, sized=False)["conditions"](indices),
            **picture(indices),
            **_LCM_CALL,
            "guidance_scale": 8.5,
        },
        cfg=lambda indices: {},
        start=None,
    ),
    "FluxControlPipeline": replace(
        _CASES["FluxPipeline"],
        build=_flux_control(diffusers.FluxControlPipeline),
        conditions=lambda indices: {
            **_CASES["FluxPipeline"].conditions(indices),
            "control_image": control_picture(indices)["image"],
        },
        cfg=lambda indices: {},
    ),
    "FluxControlImg2ImgPipeline": Case(
        _flux_control(diffusers.FluxControlImg2ImgPipeline),
        conditions=lambda indices: {
            **_CASES["FluxPipeline"].conditions(indices),
            **picture(indices),
            "control_image": control_picture(indices)["image"],
        },
        cfg=lambda indices: {},
        start=None,
    ),
    "FluxControlNetImg2ImgPipeline": replace(
        _like("FluxControlNetPipeline", diffusers.FluxControlNetImg2ImgPipeline, picture), cfg=lambda indices: {}
    ),
    "FluxControlNetInpaintPipeline": replace(
        _like("FluxControlNetPipeline", diffusers.FluxControlNetInpaintPipeline, inpainted), cfg=lambda indices: {}
    ),
    "QwenImageInpaintPipeline": _like(
        "QwenImageImg2ImgPipeline",
        diffusers.QwenImageInpaintPipeline,
        lambda indices: {
            "mask_image": inpainted(indices)["mask_image"].repeat_interleave(2, 2).repeat_interleave(2, 3)
        },
    ),
    "ZImageInpaintPipeline": _like("ZImageImg2ImgPipeline", diffusers.ZImageInpaintPipeline, inpainted),
    "Flux2KleinInpaintPipeline": _like(
        "Flux2KleinPipeline", diffusers.Flux2KleinInpaintPipeline, inpainted, is_distilled=False
    ),
}
