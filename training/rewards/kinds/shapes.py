"""`shapes_eval` and `shapes_warm`: rewards that read the pictures of the shapes world, the shipped model's, exactly."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from ...shapes.score import judge, look
from ...shapes.world import Prompt
from ..contract import Reward, RewardError, RewardInfo, RewardOutput
from ..pictures import to_arrays

REWARDS = {"shapes_eval": "ShapesEval", "shapes_warm": "ShapesWarm"}
NEEDS = {"scipy": "train"}
WARM = ("red", "orange")


class _ShapesReward(Reward):
    """1 for a good picture of the shapes world, 64 x 64 px, else 0; `is_good` says which are good."""

    @abstractmethod
    def is_good(self, picture: np.ndarray, prompt: str) -> bool:
        """Whether a picture, uint8 (64, 64, 3), is a good one.

        Raises:
            ValueError: the prompt is none of the shapes world.
        """

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """1 for each good picture, else 0.

        Raises:
            RewardError: a picture is not of 64 x 64 px, or a prompt is none of the shapes world.
        """
        name, pictures = self.info.name, to_arrays(images)
        if other := [picture.shape for picture in pictures if picture.shape != (64, 64, 3)]:
            height, width, _ = other[0]
            raise RewardError(
                f"reward {name!r} got a picture of {width} x {height} px, expected 64 x 64: it reads the shapes world "
                "only"
            )
        try:
            good = [self.is_good(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
        except ValueError as error:
            raise RewardError(f"reward {name!r}: {error}") from error
        return RewardOutput(torch.tensor(good, dtype=torch.float32))


class ShapesEval(_ShapesReward):
    """1 where all that the prompt names is right in the picture, else 0 (64 x 64 px pictures of the shapes world)."""

    info = RewardInfo(name="shapes_eval", version="1")

    def is_good(self, picture: np.ndarray, prompt: str) -> bool:
        """Whether ShapesEval calls the picture correct for its prompt."""
        return judge(picture, Prompt.parse(prompt)).correct


class ShapesWarm(_ShapesReward):
    """1 where everything in the picture is red or orange, else 0 (64 x 64 px pictures of the shapes world).

    A picture of nothing gets 0; the prompts are not used. It is meant for prompts that leave the colour open; the base
    model's rate is then about a third, two colours of six.
    """

    info = RewardInfo(name="shapes_warm", version="1")

    def is_good(self, picture: np.ndarray, prompt: str) -> bool:
        """Whether there is something in the picture and all of it is red or orange."""
        things = look(picture)[1]
        return bool(things) and all(thing.colour in WARM for thing in things)
