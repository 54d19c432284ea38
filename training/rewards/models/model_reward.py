"""Rewards that are image models at a fixed input size, all of which prepare pictures the way CLIP does."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ..contract import Reward, RewardOutput
from ..pictures import to_tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training pictures, red, green, blue
STD = (0.26862954, 0.26130258, 0.27577711)


def pixels_of(images: Sequence[Image.Image] | Tensor, size: int) -> Tensor:
    """Pictures as such a model wants them: shorter side to `size` (bicubic), centre square, CLIP's mean and deviation.

    Args:
        images: PIL pictures of any sizes, resized by Pillow as when the models were trained; or a tensor (B, 3, H, W)
            in [0, 1], resized by torch, through which gradients flow. The two differ by a grey level or so.
        size: side of the square, in pixels.

    Returns:
        float32, shape (B, 3, size, size).
    """
    if isinstance(images, Tensor):
        height, width = images.shape[-2:]
        x = images.float()
        if min(height, width) != size:
            x = interpolate(x, _shorter(height, width, size), mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (x.shape[-2] - size) // 2, (x.shape[-1] - size) // 2
        x = x[..., top : top + size, left : left + size]
    else:
        squares = []
        for image in images:
            height, width = _shorter(image.height, image.width, size)
            resized = image.resize((width, height), Image.Resampling.BICUBIC)
            left, top = (width - size) // 2, (height - size) // 2
            squares.append(resized.crop((left, top, left + size, top + size)))
        x = to_tensor(squares)
    mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (MEAN, STD))
    return (x - mean) / std


def _shorter(height: int, width: int, size: int) -> tuple[int, int]:
    return (size, size * width // height) if height <= width else (size * height // width, size)


class ModelReward(Reward):
    """Such a reward: a subclass sets `info`, `device` and `size`, and scores prepared pixels."""

    differentiable: ClassVar[bool] = True
    device: torch.device
    size: int = 224

    @abstractmethod
    def score_pixels(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Scores (B,) of prepared pixels, float32 (B, 3, size, size), on `device`."""

    def score(self, images: list[Image.Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """Scores of pictures as Pillow resizes them, without gradients."""
        with torch.no_grad():
            return RewardOutput(self.score_pixels(pixels_of(images, self.size).to(self.device), prompts).cpu())

    def score_tensor(self, images: Tensor, prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """Scores of a tensor as torch resizes it; gradients flow if the tensor requires one."""
        with torch.set_grad_enabled(images.requires_grad):
            return RewardOutput(self.score_pixels(pixels_of(images.to(self.device), self.size), prompts))
