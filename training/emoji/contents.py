"""What the emoji model was taught to draw, as its folder says it in world.json: things, and the words of its signs."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from nft_pipeline.models import shipped_model

from .pictures import STYLES
from .world import World

FILE = "world.json"


@dataclass(frozen=True)
class Contents:
    """What an emoji model was taught.

    Args:
        things: the name of each and its kind: "red apple" is "food".
        held_out: things that were not shown in one style, and that style.
        words: that signs said in training.
        held_out_words: that no sign said in training.
    """

    things: dict[str, str]
    held_out: dict[str, str]
    words: list[str]
    held_out_words: list[str]

    @classmethod
    def of(cls, world: World) -> Contents:
        """What a world has in it."""
        held_out = {
            thing.name: list(STYLES)[style]
            for i, thing in enumerate(world.things)
            if (style := world.held_out_style(i)) is not None
        }
        return cls({thing.name: thing.kind for thing in world.things}, held_out, world.words, world.held_out_words)

    def write(self, folder: Path) -> None:
        """Write world.json into the folder of a model."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=0) + "\n", encoding="utf-8")

    @classmethod
    @functools.cache
    def read(cls, folder: Path) -> Contents:
        """world.json in the folder of a model."""
        return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))


def emoji_folder() -> Path:
    """The folder of the shipped emoji model."""
    folder = shipped_model("emoji")
    assert folder is not None
    return folder
