"""The pipeline classes that diffusers exports, by its own lists."""

from __future__ import annotations

import inspect
import re
from types import SimpleNamespace
from typing import Any

import diffusers
from torch import nn

from nft_pipeline.engine.loading import find_denoisers
from nft_pipeline.errors import FamilyError
from nft_pipeline.families.registry import FAMILIES, check_pipeline, family_of

# Two of LEDITS++'s have the model behind the word. Modular pipelines are guided by a guider (docs/modular.md), and
# DiffusionPipeline is what all are made of.
_NAME = re.compile(r"^(?!Modular|DiffusionPipeline$)(?!.*ModularPipeline$)\w+Pipeline(StableDiffusion(XL)?)?$")


def pipeline_names() -> list[str]:
    """Every pipeline class of diffusers by name, whether or not its optional packages are here."""
    exported: dict[str, list[str]] = diffusers._import_structure
    return sorted({name for names in exported.values() for name in names if _NAME.match(name)})


def pipeline_class(name: str) -> Any:
    """The class, or what diffusers exports in its place where a package is missing."""
    return getattr(diffusers, name)


def taken(function: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a constructor or a call by name."""
    parameters = inspect.signature(function).parameters
    return {name: parameter for name, parameter in parameters.items() if name != "self"}


def is_needed(parameter: inspect.Parameter) -> bool:
    """Whether nothing works without it."""
    some = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return parameter.default is inspect.Parameter.empty and parameter.kind not in some


def refusal_by_signature(name: str) -> dict[str, str] | None:
    """The verdict on a class, and why, where its constructor and its call alone tell; None where they do not."""
    cls = pipeline_class(name)
    if not issubclass(cls, diffusers.DiffusionPipeline):  # what stands in for it where a package is missing
        return None
    parts = inspect.signature(cls.__init__).parameters
    if not any("scheduler" in part for part in parts):
        return {"verdict": "no denoising", "why": "it has no scheduler"}
    component = next((part for part in ("unet", "transformer") if part in parts), None)
    try:
        kind = parts[component].annotation if component is not None else None
        if component is None or (isinstance(kind, type) and not issubclass(kind, nn.Module)):
            find_denoisers(SimpleNamespace(), cls, component or "transformer")
        else:
            denoiser = getattr(kind, "__name__", str(kind))
            # Of a class without a file its forward's signature decides, for which no weights are needed.
            known = FAMILIES.get(denoiser, FAMILIES["FluxTransformer2DModel"])
            is_model = isinstance(kind, type) and denoiser not in FAMILIES
            check_pipeline(cls, family_of(kind.__new__(kind)) if is_model else known)
    except FamilyError as error:
        return {"verdict": "refused", "why": str(error)}
    return None
