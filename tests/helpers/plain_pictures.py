"""Small pictures for tests of rewards."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def plain(colour: str, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """One colour."""
    return Image.new("RGB", size, colour)


def noise(seed: int, size: int = 32) -> Image.Image:
    """Every pixel at random, by its seed."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def written(text: str, size: int = 40) -> Image.Image:
    """A text in black on white, in Pillow's own font."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    picture = Image.new("RGB", (int(right - left) + 60, int(bottom - top) + 60), "white")
    ImageDraw.Draw(picture).text((30 - left, 30 - top), text, font=font, fill="black")
    return picture
