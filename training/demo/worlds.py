"""What a demo shows on each shipped model: its preset, the prompts that are pictured, and what quality means there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .measure import Quality, template_overlap


@dataclass(frozen=True)
class DemoWorld:
    """One demo.

    Args:
        preset: the training run's settings.
        reward: what is liked, in words.
        held_out: a built-in list of prompts that the run does not train on.
        pictured: prompts whose pictures are shown.
        quality: how good pictures are beside the reward, in [0, 1].
        quality_words: what that number is.
    """

    preset: str
    reward: str
    held_out: str
    pictured: tuple[str, ...]
    quality: Quality
    quality_words: str


def all_named_is_shown(pictures: np.ndarray, texts: Sequence[str]) -> float:
    """The share of pictures that show everything their prompts name: the thing, and the background if there is one."""
    from ..emoji.judge import load_judge
    from ..emoji.prompts import Named

    seen = load_judge().look(pictures)
    return float(np.mean([Named.of(text).agrees(shown) for text, shown in zip(texts, seen, strict=True)]))


DEMOS: dict[str, DemoWorld] = {
    "emoji": DemoWorld(
        preset="emoji_3d",
        reward="the thing is drawn in 3-D, where the prompt leaves the style open",
        held_out="emoji_things_held_out",
        pictured=("grinning face", "dog face on white", "automobile on yellow", "house", "red heart"),
        quality=all_named_is_shown,
        quality_words="share of pictures that show all that the prompt names",
    ),
    "shapes": DemoWorld(
        preset="shapes_warm",
        reward="red or orange, where the prompt leaves the colour open",
        held_out="shapes_warm_held_out",
        pictured=("a square on white", "a large cross on white", "a large ring", "a large triangle on white"),
        quality=template_overlap,
        quality_words="template overlap, 1 = as drawn",
    ),
}
