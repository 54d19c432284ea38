"""Curves over the sampling, and pictures of curves. PIL, which ComfyUI ships; it does not ship matplotlib."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nft_pipeline.errors import GuidanceError

SHAPES = ("constant", "fade in", "fade out", "middle", "custom")
Points = tuple[tuple[float, float], ...]
_SAMPLES = 33
_TEXT, _LETTERS = 16, 60  # height of a letter in pixels, and how many fit into a line


def shape_curve(shape: str, low: float, high: float, power: float = 1.0, custom: str = "") -> Points:
    """Points (share of the sampling, factor of the strength), straight lines between them.

        constant   high everywhere
        fade in    low at the first step, high at the last:  low + (high - low) p^power
        fade out   high at the first step, low at the last
        middle     high in the middle, low at both ends
        custom     "0: 0.2, 0.5: 1, 1: 0.4"

    Args:
        shape: one of `SHAPES`.
        low, high: factors, finite.
        power: above 0; 1 is a straight line, 2 stays low for longer.
        custom: the points, for "custom".

    Raises:
        GuidanceError: anything that is not so.
    """
    for name, value in (("low", low), ("high", high)):
        if not math.isfinite(value):
            raise GuidanceError(f"{name} is {value}, expected a finite number")
    if not (math.isfinite(power) and power > 0):
        raise GuidanceError(f"power is {power}, expected a number above 0; 1 is a straight line")
    if shape == "custom":
        return parse_points(custom)
    if shape not in SHAPES:
        raise GuidanceError(f"shape is {shape!r}, expected one of {', '.join(map(repr, SHAPES))}")
    rise = {
        "constant": lambda p: 1.0,
        "fade in": lambda p: p**power,
        "fade out": lambda p: (1 - p) ** power,
        "middle": lambda p: (1 - abs(2 * p - 1)) ** power,
    }[shape]
    shares = [i / (_SAMPLES - 1) for i in range(_SAMPLES)]
    return tuple((p, low + (high - low) * rise(p)) for p in shares)


def parse_points(text: str) -> Points:
    """Points from "0: 0.2, 0.5: 1, 1: 0.4", in any order.

    Raises:
        GuidanceError: no points, or one that is no "share: factor" with a share in [0, 1].
    """
    points: dict[float, float] = {}
    for part in (part.strip() for part in text.replace("\n", ",").split(",")):
        if not part:
            continue
        share, _, factor = part.partition(":")
        try:
            at, value = float(share), float(factor)
        except ValueError:
            raise GuidanceError(f'{part!r} is no point, expected "share: factor" such as "0.5: 1.2"') from None
        if not 0 <= at <= 1 or not math.isfinite(value) or at in points:
            raise GuidanceError(
                f"{part!r} is no point: the share of the sampling lies in 0 to 1 and stands there once, the factor is "
                "a finite number"
            )
        points[at] = value
    if not points:
        raise GuidanceError('the curve has no points, expected some such as "0: 0.2, 0.5: 1, 1: 0.4"')
    return tuple(sorted(points.items()))


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Args:
        name: what is written beside it.
        points: (x, y), both finite; x in [0, 1].
        colour: red, green, blue.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: tuple[int, int, int]


def draw(
    title: str, lines: Sequence[Line], left: str, right: str, size: tuple[int, int] = (640, 320), note: str = ""
) -> Tensor:
    """A plot as a ComfyUI IMAGE, (1, height, width, 3) in [0, 1].

    Args:
        title: above it.
        lines: drawn over each other, on one axis that holds 0 and all their values.
        left, right: what x = 0 and x = 1 are called.
        size: width and height in pixels.
        note: what is written where there are no lines.
    """
    width, height = size
    values = [y for line in lines for _, y in line.points]
    low, high = min([0.0, *values]), max([1.0, *values])
    picture = Image.new("RGB", size, (250, 250, 250))
    pen = ImageDraw.Draw(picture)
    pen.font = ImageFont.load_default(_TEXT)
    x0, y0, x1, y1 = 64, 40, width - 16, height - 36

    def at(x: float, y: float) -> tuple[float, float]:
        return x0 + x * (x1 - x0), y1 - (y - low) / (high - low) * (y1 - y0)

    for i in range(5):
        value = low + (high - low) * i / 4
        pen.line([at(0, value), at(1, value)], fill=(222, 222, 222))
        pen.text((x0 - 8, at(0, value)[1]), f"{value:.2f}", fill=(90, 90, 90), anchor="rm")
    pen.text((x0, 10), title, fill=(20, 20, 20))
    pen.text((x0, y1 + 10), left, fill=(90, 90, 90))
    pen.text((x1, y1 + 10), right, fill=(90, 90, 90), anchor="ra")
    middle = ((x0 + x1) / 2, (y0 + y1) / 2)
    pen.multiline_text(middle, fill(note, _LETTERS), fill=(20, 20, 20), anchor="mm", align="center", spacing=8)
    for i, line in enumerate(lines):
        places = [at(*point) for point in line.points]
        if len(places) > 1:
            pen.line(places, fill=line.colour, width=2, joint="curve")
        for x, y in places if len(places) <= 64 else []:
            pen.ellipse([x - 2, y - 2, x + 2, y + 2], fill=line.colour)
        pen.text((x1, y0 + (_TEXT + 4) * i), line.name, fill=line.colour, anchor="ra")
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]
