"""The emoji world: named things in a style on a background, and words on signs.

    3d red apple on pink            a style, a thing and a background; each of the three may be left out
    a sign that says "CAT" on blue  capital letters are read one by one, everything else in lower case

What a prompt leaves open is spread evenly over what it can be.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .pictures import SIZE, STYLES, Thing, font_files, read, things

BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (24, 24, 28),
    "blue": (120, 170, 230),
    "green": (150, 205, 150),
    "pink": (240, 180, 200),
    "yellow": (250, 225, 130),
}
INKS = ((24, 24, 28), (200, 30, 40), (30, 60, 170))
SIGN_WORDS = ("a", "sign", "that", "says", '"', "on")
_UNFIT = {
    "ass",
    "gun",
    "jew",
    "gay",
    "poo",
    "sex",
    "shit",
    "fml",
    "die",
    "bomb",
    "dead",
    "dumb",
    "hate",
    "puke",
    "arab",
    "evil",
    "hell",
    "kill",
    "drug",
    "beer",
    "wine",
    "piss",
    "poop",
    "anal",
    "wtf",
    "tit",
    "bra",
    "butt",
}


@dataclass(frozen=True)
class World:
    """What can be drawn.

    Args:
        things: in a fixed order.
        opaque: pictures of every thing in every style, uint8 (things, styles, 64, 64, 4).
        words: that signs say in training.
        held_out_words: that no sign in training says; a tenth of all.
        fonts: files that signs are written in.
    """

    things: list[Thing]
    opaque: np.ndarray
    words: list[str]
    held_out_words: list[str]
    fonts: list[Path]

    @classmethod
    def of(cls, folder: Path) -> World:
        """The world in the packages that `pictures.fetch` put below `folder`."""
        chosen = things(folder)
        opaque = np.stack([np.stack([read(folder, thing, style) for style in STYLES]) for thing in chosen])
        words = sign_words(folder)
        held_out = words[::10]
        return cls(chosen, opaque, sorted(set(words) - set(held_out)), held_out, font_files(folder))

    def held_out_style(self, thing: int) -> int | None:
        """The style in which no picture of a thing is trained on: one style of every eighth thing, else None."""
        return (thing // 8) % len(STYLES) if thing % 8 == 3 else None


def sign_words(folder: Path) -> list[str]:
    """Words of three and four letters by which people look for emoji, in a fixed shuffled order."""
    entries = json.loads((folder / "emojibase-data/en/data.json").read_text(encoding="utf-8"))
    texts = [text for entry in entries for text in (entry["label"], *entry.get("tags", []))]
    words = {word for text in texts for word in re.findall(r"\b[a-z]{3,4}\b", text.lower())} - _UNFIT
    ordered = sorted(word.upper() for word in words)
    return [ordered[i] for i in np.random.default_rng(0).permutation(len(ordered))]


def compose(opaque: np.ndarray, background: str) -> np.ndarray:
    """A picture on a background, uint8 (64, 64, 4) -> (64, 64, 3)."""
    opacity = opaque[..., 3:].astype(np.float32) / 255
    mixed = opaque[..., :3] * opacity + np.array(BACKGROUNDS[background], np.float32) * (1 - opacity)
    return mixed.round().clip(0, 255).astype(np.uint8)


def draw_sign(word: str, background: str, ink: int, font: Path) -> np.ndarray:
    """A white board with a word on it, uint8 (64, 64, 3)."""
    picture = Image.new("RGB", (SIZE, SIZE), BACKGROUNDS[background])
    pen = ImageDraw.Draw(picture)
    pen.rounded_rectangle((2, 16, SIZE - 3, SIZE - 17), radius=5, fill=(252, 252, 250), outline=(90, 90, 96))
    size = 30
    while pen.textlength(word, face := _face(font, size)) > SIZE - 14 and size > 8:
        size -= 1
    pen.text((SIZE / 2, SIZE / 2), word, fill=INKS[ink], font=face, anchor="mm")
    return np.asarray(picture)


@functools.lru_cache
def _face(font: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font, size)


def thing_prompt(name: str = "", style: str = "", background: str = "", commas: bool = False) -> str:
    """The prompt that names what is given: "3d red apple on pink", or with commas "red apple, 3d, on pink"."""
    parts = [name, style] if commas else [style, name]
    if background:
        parts.append(f"on {background}")
    return (", " if commas else " ").join(part for part in parts if part)


def sign_prompt(word: str, background: str = "") -> str:
    """The prompt for a sign: a sign that says "CAT" on blue."""
    return f'a sign that says "{word.upper()}"' + (f" on {background}" if background else "")


def vocabulary(chosen: list[Thing]) -> list[str]:
    """Every word of the prompts but those that signs say."""
    words = {word for thing in chosen for word in (*thing.name.split(), thing.kind)}
    return sorted(words | {"shaded", "flat", *BACKGROUNDS, *(word for word in SIGN_WORDS if word.isalpha())})
