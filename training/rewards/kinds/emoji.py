"""Rewards on pictures of the emoji model, by its judge: all that is named is right, 3d, dark, smiling."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from ...emoji.judge import SIGN, Shown, load_judge
from ...emoji.prompts import Named
from ..contract import Reward, RewardError, RewardInfo, RewardOutput
from ..pictures import to_arrays

REWARDS = {
    "emoji_right": "EmojiRight",
    "emoji_3d": "Emoji3D",
    "emoji_dark": "EmojiDark",
    "emoji_smiling": "EmojiSmiling",
}
NEEDS: dict[str, str] = {}
SMILING = (
    "grinning face",
    "smiling face",
    "winking face",
    "star struck",
    "zany face",
    "partying face",
    "nerd face",
    "grinning cat",
)


class _EmojiReward(Reward):
    """1 for a good picture of the emoji model, 64 x 64 px, else 0; `is_good` says which are good.

    Details: `thing`, `style` and `background`, what the judge sees.
    """

    @abstractmethod
    def is_good(self, shown: Shown, prompt: str) -> bool:
        """Whether a picture that shows this is a good one."""

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """1 for each good picture, else 0.

        Raises:
            RewardError: a picture is not of 64 x 64 px.
        """
        pictures = to_arrays(images)
        if other := [picture.shape for picture in pictures if picture.shape != (64, 64, 3)]:
            height, width, _ = other[0]
            raise RewardError(
                f"reward {self.info.name!r} got a picture of {width} x {height} px, expected 64 x 64: it reads "
                "pictures of the emoji model only"
            )
        seen = load_judge().look(np.stack(pictures))
        good = [self.is_good(shown, prompt) for shown, prompt in zip(seen, prompts, strict=True)]
        return RewardOutput(
            torch.tensor(good, dtype=torch.float32),
            {
                "thing": [shown.thing for shown in seen],
                "style": [shown.style for shown in seen],
                "background": [shown.background for shown in seen],
            },
        )


class EmojiRight(_EmojiReward):
    """1 where everything that the prompt names is right: thing or kind, style, background. Words are not read."""

    info = RewardInfo(name="emoji_right", version="1")

    def is_good(self, shown: Shown, prompt: str) -> bool:
        """Whether the picture shows what the prompt names."""
        return Named.of(prompt).agrees(shown)


class Emoji3D(_EmojiReward):
    """1 where the picture shows a thing in the style "3d". Meant for prompts that leave the style open."""

    info = RewardInfo(name="emoji_3d", version="1")

    def is_good(self, shown: Shown, prompt: str) -> bool:
        """Whether a thing is there and its style is 3d."""
        return shown.thing != SIGN and shown.style == "3d"


class EmojiDark(_EmojiReward):
    """1 where the background is black. Meant for prompts that leave the background open."""

    info = RewardInfo(name="emoji_dark", version="1")

    def is_good(self, shown: Shown, prompt: str) -> bool:
        """Whether the background is black."""
        return shown.background == "black"


class EmojiSmiling(_EmojiReward):
    """1 where the picture shows one of the smiling faces. Meant for prompts such as "face", that leave it open."""

    info = RewardInfo(name="emoji_smiling", version="1")

    def is_good(self, shown: Shown, prompt: str) -> bool:
        """Whether the thing is a smiling face."""
        return shown.thing in SMILING
