"""The scorers of the shipped shapes model as rewards. What they look at is in `training.shapes`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from ...shapes.scorers import shapes_eval, warm
from ..contract import Reward, RewardError, RewardInfo, RewardOutput
from ..pictures import to_arrays


class ShapesEval(Reward):
    """1 where all that the prompt names is right in the picture, else 0 (64 x 64 px pictures of the shapes world)."""

    def __init__(self) -> None:
        self.info = RewardInfo(name="shapes_eval", version="1")

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        return _scored(shapes_eval, images, prompts, self.info.name)


class ShapesWarm(Reward):
    """1 where everything in the picture is red or orange, else 0 (64 x 64 px pictures of the shapes world)."""

    def __init__(self) -> None:
        self.info = RewardInfo(name="shapes_warm", version="1")

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        return _scored(warm, images, prompts, self.info.name)


def _scored(function: Any, images: list[Image], prompts: list[str], name: str) -> RewardOutput:
    pictures = to_arrays(images)
    if other := [picture.shape for picture in pictures if picture.shape != (64, 64, 3)]:
        height, width, _ = other[0]
        raise RewardError(
            f"reward {name!r} got a picture of {width} x {height} px, expected 64 x 64: it reads the shapes world only"
        )
    try:
        return RewardOutput(torch.from_numpy(np.asarray(function(np.stack(pictures), prompts), dtype=np.float32)))
    except ValueError as error:
        raise RewardError(f"reward {name!r}: {error}") from error
