"""Prompts of the emoji model, under the names by which a training run asks for them, and what a prompt names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .contents import Contents, emoji_folder
from .pictures import STYLES
from .world import BACKGROUNDS, sign_prompt, thing_prompt

if TYPE_CHECKING:
    from .judge import Shown

EVERY = 5  # one thing in five is kept for measuring


@dataclass(frozen=True)
class Named:
    """What a prompt of the emoji world names; what it leaves open is an empty text.

    Args:
        thing: a thing, a kind of thing, or "sign".
        style: a key of `pictures.STYLES`.
        background: a key of `world.BACKGROUNDS`.
    """

    thing: str
    style: str
    background: str

    @classmethod
    def of(cls, prompt: str) -> Named:
        """What a prompt such as "3d red apple on pink" or "red apple, 3d, on pink" names."""
        words = prompt.replace(",", " ").lower().split()
        background = words[-1] if len(words) > 1 and words[-2] == "on" and words[-1] in BACKGROUNDS else ""
        words = words[:-2] if background else words
        if "sign" in words and "says" in words:
            return cls("sign", "", background)
        style = next((word for word in words if word in STYLES), "")
        return cls(" ".join(word for word in words if word not in STYLES), style, background)

    def agrees(self, shown: Shown) -> bool:
        """Whether a picture shows all that is named."""
        return (
            self.thing in ("", shown.thing, shown.kind)
            and self.style in ("", shown.style)
            and self.background in ("", shown.background)
        )


def _open_style(held_out: bool) -> list[str]:
    contents = Contents.read(emoji_folder())
    names = [name for name in contents.things if name not in contents.held_out]
    chosen = [name for i, name in enumerate(names) if (i % EVERY == 0) == held_out]
    grounds = ["", *BACKGROUNDS]
    return [thing_prompt(name, background=grounds[i % len(grounds)]) for i, name in enumerate(chosen)]


def _all_open(held_out: bool) -> list[str]:
    """The same things as in `_open_style`, with no background named either."""
    return [Named.of(prompt).thing for prompt in _open_style(held_out)]


def _signs(held_out: bool) -> list[str]:
    contents = Contents.read(emoji_folder())
    grounds = ["", *BACKGROUNDS]
    words = contents.held_out_words if held_out else contents.words
    return [sign_prompt(word, grounds[i % len(grounds)]) for i, word in enumerate(words)]


def _faces(held_out: bool) -> list[str]:
    prompts = [thing_prompt("face", style, ground) for ground in ("", *BACKGROUNDS) for style in ("", *STYLES)]
    return [prompt for i, prompt in enumerate(prompts) if (i % EVERY == 0) == held_out]


PROMPTS: dict[str, Callable[[], list[str]]] = {
    "emoji_things": lambda: _open_style(held_out=False),
    "emoji_things_held_out": lambda: _open_style(held_out=True),
    "emoji_open": lambda: _all_open(held_out=False),
    "emoji_open_held_out": lambda: _all_open(held_out=True),
    "emoji_signs": lambda: _signs(held_out=False),
    "emoji_signs_held_out": lambda: _signs(held_out=True),
    "emoji_faces": lambda: _faces(held_out=False),
    "emoji_faces_held_out": lambda: _faces(held_out=True),
}
