"""Rewards that need nothing but the pixels. Cheap, honest about what they measure, and good for a first run."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from ..contract import Reward, RewardInfo, RewardOutput
from ..pictures import to_arrays

REWARDS = {"jpeg_size": "JpegSize", "colourfulness": "Colourfulness", "sharpness": "Sharpness"}


class JpegSize(Reward):
    """Bits per pixel of the picture as a JPEG of quality 95: detail and noise make it large, flat areas small.

    The (in)compressibility reward of DDPO (2305.13301), there in kB; bits per pixel do not depend on its size.
    Give it a negative weight for smooth pictures.
    """

    info = RewardInfo(name="jpeg_size", range=(0.0, 24.0), middle=2.0, spread=1.0, version="1")

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """Bits per pixel, from 0 to about 24."""
        return RewardOutput(torch.tensor([_jpeg_bits(image) / (image.width * image.height) for image in images]))


def _jpeg_bits(image: Image) -> int:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=95)
    return 8 * buffer.tell()


class Colourfulness(Reward):
    """Hasler and Süsstrunk's colourfulness M (2003, their equation for M^(3)), 0 for grey pictures.

    With rg = R - G and yb = (R + G) / 2 - B: M = ‖(std rg, std yb)‖ + 0.3 ‖(mean rg, mean yb)‖. Their own scale: 15
    slightly, 33 moderately, 45 averagely, 59 quite, 82 highly, 109 extremely colourful.
    """

    info = RewardInfo(name="colourfulness", range=(0.0, float("inf")), middle=45.0, spread=20.0, version="1")

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """M, from 0 (grey) to about 110."""
        return RewardOutput(torch.tensor([_colourfulness(picture) for picture in to_arrays(images)]))


def _colourfulness(picture: np.ndarray) -> float:
    red, green, blue = np.moveaxis(picture.astype(np.float64), -1, 0)
    rg, yb = red - green, (red + green) / 2 - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


class Sharpness(Reward):
    """log10(1 + variance of the Laplacian of the luma, 0 to 255): 0 flat, 2 soft, 3 crisp, 4 noisy.

    It cannot tell noise from detail; use it with something that can.
    """

    info = RewardInfo(name="sharpness", range=(0.0, float("inf")), middle=2.5, spread=0.5, version="1")

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """log10(1 + variance of the Laplacian), from 0."""
        return RewardOutput(torch.tensor([_sharpness(np.asarray(image.convert("L"))) for image in images]))


def _sharpness(luma: np.ndarray) -> float:
    y = np.pad(luma.astype(np.float64), 1, mode="edge")
    laplacian = y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:] - 4 * y[1:-1, 1:-1]
    return float(np.log10(1 + laplacian.var()))
