"""Pictures as people saw them: turned upright, on white where they are transparent, and with all of their range.

PIL gives the numbers of a file as they are stored. A telephone stores the picture on its side and a note beside it, a
picture of 16 bits loses all but its ends when it is made one of 8 bits, and transparent places hold any colour.
Training and rewards have to see what a person who rated the picture saw.
"""

from __future__ import annotations

import os
import struct
from io import BytesIO

from PIL import Image, ImageOps

# By name, whatever the file is called: PIL also runs Ghostscript for EPS, and reads some fifty more formats.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "MPO", "GIF", "TIFF")
_DAMAGED = (SyntaxError, struct.error, KeyError, TypeError, EOFError)  # PIL lets these through, the first for PNGs


def read_picture(source: str | os.PathLike[str] | BytesIO) -> Image.Image:
    """A picture file as 8-bit RGB, as a browser shows it.

    Args:
        source: a path, or the content of a file; PNG, JPEG, WebP, BMP, GIF or TIFF. Of an animation the first frame.

    Raises:
        OSError: no such file, damaged, or none of these formats.
        ValueError: numbers in the file that no picture has.
        PIL.Image.DecompressionBombError: so many pixels that it must be an attack.
    """
    try:
        with Image.open(source, formats=FORMATS) as file:
            return as_seen(file)
    except _DAMAGED as error:
        raise OSError(f"it is damaged: {error}") from error


def as_seen(picture: Image.Image) -> Image.Image:
    """A picture as 8-bit RGB: turned as its EXIF data say, 16 bits scaled to 8, on white where it is transparent."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits, or 32 that hold 16
        picture = picture.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture.convert("RGB")


def upright_size(source: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) of a picture file as `read_picture` gives it, without reading its pixels; its errors."""
    try:
        with Image.open(source, formats=FORMATS) as file:
            on_its_side = file.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (file.height, file.width) if on_its_side else file.size
    except _DAMAGED as error:
        raise OSError(f"it is damaged: {error}") from error
