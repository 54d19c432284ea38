"""The guider of diffusers inside ours: checked, written into a config and read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import diffusers.guiders
from diffusers.guiders import BaseGuidance, ClassifierFreeGuidance

from ..errors import GuidanceError
from ..files.discovery import classes_in

_CLASS = "_class_name"
_SCALARS = (bool, int, float)


def known_guiders() -> dict[str, type[BaseGuidance]]:
    """The guiders of the installed diffusers, by class name."""
    kinds = classes_in(diffusers.guiders, BaseGuidance)
    return {kind.__name__: kind for kind in kinds if kind is not BaseGuidance}


def as_guider(guider: Any) -> BaseGuidance:
    """A guider of diffusers, from itself or from what `as_config` gave.

    Raises:
        GuidanceError: it is no guider, or a class that this diffusers does not have.
    """
    if isinstance(guider, Mapping):
        kinds, settings = known_guiders(), dict(guider)
        name = settings.pop(_CLASS, None)
        if name not in kinds:
            raise GuidanceError(
                f"the guider inside is a {name!r}, and this diffusers has {', '.join(sorted(kinds))}. Install the "
                "version that wrote it, or give guider= yourself."
            )
        return kinds[name](**settings)
    if not isinstance(guider, BaseGuidance):
        raise GuidanceError(
            f"guider is a {type(guider).__name__}, expected a guider of diffusers, such as "
            "diffusers.guiders.AdaptiveProjectedGuidance(guidance_scale=4.0)."
        )
    if hasattr(guider, "load_nft_adapter"):
        raise GuidanceError(
            "guider is a DiffusionNFTGuidance itself, and one guider has one adapter. For several at once use "
            "DiffusionNFTPipeline; for another strength set nft_strength."
        )
    return guider


def is_plain(guider: BaseGuidance) -> bool:
    """Whether a guider is diffusers' classifier-free guidance, whose arguments ours takes too."""
    return type(guider) is ClassifierFreeGuidance


def as_config(guider: BaseGuidance) -> dict[str, Any]:
    """A guider's class and arguments, for JSON: numbers as they are now, the rest as it was made.

    Raises:
        GuidanceError: a class of the user's own, which nobody could read back.
    """
    kind = type(guider)
    if known_guiders().get(kind.__name__) is not kind:
        raise GuidanceError(
            f"the guider inside is a {kind.__name__}, which is none of diffusers' own, so it cannot be saved. Save the "
            "settings yourself."
        )
    made = {name: value for name, value in guider.config.items() if not name.startswith("_")}
    return {_CLASS: kind.__name__, **{name: _plain(_present(guider, name, value)) for name, value in made.items()}}


def _present(guider: BaseGuidance, name: str, made: Any) -> Any:
    now = getattr(guider, f"_{name}" if name in ("start", "stop", "enabled") else name, made)
    return now if isinstance(now, _SCALARS) and isinstance(made, _SCALARS) else made


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
