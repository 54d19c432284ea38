"""The lists in docs/pipelines.md: a table made from the cases of the zoo, the pipelines that can be trained, and how
many classes of diffusers docs/measured/pipelines.md has of each kind.

    make pages

writes them again. A test compares page and code.
"""

from __future__ import annotations

import warnings
from typing import Any

import diffusers

from helpers.made import with_parts
from helpers.pipeline_results import counts
from helpers.repository import ROOT
from helpers.zoo import CASES, GENERIC, SIBLINGS, Case, denoiser_of
from nft_pipeline.errors import FamilyError
from nft_pipeline.families.family import Family
from nft_pipeline.families.registry import FAMILIES, check_pipeline, family_of
from nft_pipeline.training.bases.registry import TRAINABLE

PAGE = ROOT / "docs" / "pipelines.md"

# Over denoisers that have a row; each stands for its kind.
REFUSED: tuple[Any, ...] = (
    diffusers.StableDiffusionPAGPipeline,
    diffusers.StableDiffusionInstructPix2PixPipeline,
    diffusers.StableDiffusionXLInstructPix2PixPipeline,
    diffusers.LEditsPPPipelineStableDiffusion,
    diffusers.MarigoldDepthPipeline,
    diffusers.StableDiffusionSAGPipeline,
)
_PREDICTIONS = {"epsilon": "noise", "v_prediction": "v", "flow_prediction": "flow"}
_CFG = {
    "unconditional_first": "one call, doubled batch",
    "conditional_first": "one call, doubled batch, conditional rows first",
    "two_calls": "two calls",
    "unknown": "a positive adapter needs two calls",
}


def refusal(pipeline: Any) -> str:
    """Why this pipeline class over a UNet is refused."""
    try:
        check_pipeline(pipeline, FAMILIES["UNet2DConditionModel"])
    except FamilyError as error:
        return str(error).partition(": ")[2].partition(". Use ")[0]
    raise AssertionError(f"{pipeline.__name__} is not refused")


def _row(name: str, case: Case, state: str) -> str:
    pipe = case.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the generic families'
        family: Family = family_of(denoiser_of(pipe))
    prediction = _PREDICTIONS.get(getattr(pipe.scheduler.config, "prediction_type", "flow_prediction"), "flow")
    cfg = _CFG[family.cfg] if case.cfg([0]) else "none"
    return f"| {name} | {family.denoiser} | {prediction} | {cfg} | {state} |\n"


def table() -> str:
    """The table of pipelines: tested ones, their siblings, generic ones, refused ones."""
    lines = ["| pipeline | denoiser | prediction | classifier-free guidance | state |\n", "|---|---|---|---|---|\n"]
    lines += [_row(name, case, "tested") for name, case in CASES.items()]
    lines += [_row(name, case, "sibling") for name, case in SIBLINGS.items()]
    lines += [_row(name, case, "generic") for name, case in GENERIC.items()]
    lines += [
        f"| {pipeline.__name__} | UNet2DConditionModel | | | refused: {refusal(pipeline)} |\n" for pipeline in REFUSED
    ]
    return "".join(lines)


def trainable() -> str:
    """The list of pipelines that the trainer takes."""
    return "".join(f"- {name}\n" for name in sorted(TRAINABLE))


def page() -> str:
    """The page as it should be: its text as it is, with its lists and counts made anew."""
    return with_parts(PAGE, counts=counts(), table=table(), trainable=trainable())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
