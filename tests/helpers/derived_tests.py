"""Tests for pipeline classes that have none, out of the tests of those that are named most alike.

What a class takes is in its constructor's signature and its call's: parts and inputs of these names are taken from its
siblings' tests, the closest first, and pictures and masks that a sibling has under another name under that one.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from typing import Any

import PIL.Image
import torch

from helpers.pipeline_classes import is_needed, pipeline_class, pipeline_names, taken
from helpers.stand_ins import stand_ins
from helpers.stock_tests import StockTests, per_sample

_SIBLINGS = 5
_PICTURES = ("image", "video", "original_image", "controlnet_conditioning_scale", "source_prompt", "controls")
_OF_A_PICTURE = ("control_image", "mask_image", "mask")


class DerivedTest:
    """A test made of siblings' tests.

    Args:
        name: of the class.
        siblings: tests, the closest first; the first gives all that it has of what the class takes.
    """

    def __init__(self, name: str, siblings: list[Any]) -> None:
        self._cls, self._siblings = pipeline_class(name), siblings

    @property
    def batch_params(self) -> frozenset[str]:
        return frozenset(name for test in self._siblings for name in per_sample(test))

    def get_dummy_components(self) -> dict[str, Any]:
        parameters = taken(self._cls.__init__)
        parts: dict[str, Any] = {}
        for test in self._siblings:
            needed = [name for name, parameter in parameters.items() if name not in parts and is_needed(parameter)]
            if parts and not needed:
                break
            try:
                with stand_ins():
                    torch.manual_seed(0)
                    offered = test.get_dummy_components()
            except Exception:
                if not parts:
                    raise
                continue
            fitting = {name for name, part in offered.items() if name in parameters and _fits(part, parameters[name])}
            parts |= {name: offered[name] for name in (needed if parts else parameters) if name in fitting}
        return parts

    def get_dummy_inputs(self) -> dict[str, Any]:
        parameters = taken(self._cls.__call__)
        inputs: dict[str, Any] = {}
        for test in self._siblings:
            wanted = inspect.signature(test.get_dummy_inputs).parameters
            offered = test.get_dummy_inputs("cpu") if "device" in wanted else test.get_dummy_inputs()
            missing = [name for name in parameters if name not in inputs and (not inputs or name in _PICTURES)]
            inputs |= {name: offered[name] for name in missing if name in offered}
            if "image" in inputs:
                inputs = {name: _like(inputs["image"], name) for name in _OF_A_PICTURE if name in parameters} | inputs
        return inputs


def derived_tests(name: str, tests: StockTests) -> Iterator[DerivedTest]:
    """Tests for a class, of its siblings' tests, each beginning with another sibling."""
    others = [other for other in pipeline_names() if other != name and tests.has(other)]
    ranked = sorted(others, key=lambda other: _distance(name, other))[:_SIBLINGS]
    siblings = []
    for other in ranked:
        try:
            siblings += list(tests.of(other))[:1]
        except ImportError:
            continue
    for first in siblings[:2]:
        yield DerivedTest(name, [first, *(test for test in siblings if test is not first)])


def _like(picture: Any, name: str) -> Any:
    """A control picture or a mask for a picture, of its kind and size."""
    if "mask" not in name or isinstance(picture, list):
        return picture
    if isinstance(picture, PIL.Image.Image):
        return PIL.Image.new("L", picture.size)
    return picture[:, :1] * 0


def _distance(name: str, other: str) -> tuple[bool, bool, float]:
    """How far a class is from another: first whether they have one denoiser, then one folder, then like names."""
    ours, theirs = pipeline_class(name), pipeline_class(other)
    folders = [cls.__module__.rpartition(".")[0] for cls in (ours, theirs)]
    alike = difflib.SequenceMatcher(None, name, other).ratio()
    return _denoiser(ours) != _denoiser(theirs), folders[0] != folders[1], -alike


def _denoiser(cls: Any) -> Any:
    parameters = taken(cls.__init__)
    return next((parameters[part].annotation for part in ("unet", "transformer") if part in parameters), None)


def _like(picture: Any, name: str) -> Any:
    """A control picture or a mask for a picture, of its kind and size."""
    if "mask" not in name or isinstance(picture, list):
        return picture
    if isinstance(picture, PIL.Image.Image):
        return PIL.Image.new("L", picture.size)
    return picture[:, :1] * 0


def _distance(name: str, other: str) -> tuple[bool, float]:
    families = [pipeline_class(each).__module__.rpartition(".")[0] for each in (name, other)]
    return families[0] != families[1], -difflib.SequenceMatcher(None, name, other).ratio()


def _fits(part: Any, parameter: inspect.Parameter) -> bool:
    """Whether a part is what the constructor says that it takes; text encoders and tokenizers need not be."""
    kind = parameter.annotation
    strict = isinstance(kind, type) and kind.__module__.startswith("diffusers") and "cheduler" not in kind.__name__
    return not strict or part is None or isinstance(part, kind)
