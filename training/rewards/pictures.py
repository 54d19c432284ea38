"""Pictures in three forms: PIL, tensors (B, 3, H, W) in [0, 1], and uint8 arrays (B, H, W, 3)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_arrays(images: Sequence[Image.Image]) -> list[np.ndarray]:
    """uint8 arrays (H, W, 3), one per picture."""
    return [np.asarray(image.convert("RGB")) for image in images]


def to_pil(images: Tensor | np.ndarray) -> list[Image.Image]:
    """PIL pictures of a tensor (B, 3, H, W) in [0, 1], clamped there, or of a uint8 array (B, H, W, 3)."""
    if isinstance(images, Tensor):
        pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
        images = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in images]


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """float32 (B, 3, H, W) in [0, 1]; the pictures must be of one size."""
    return torch.from_numpy(np.stack(to_arrays(images))).permute(0, 3, 1, 2).float() / 255


def content_hash(image: Image.Image) -> str:
    """A hash of the pixels and the size: the same for a PNG and any other lossless copy of it."""
    pixels = image.convert("RGB")
    return hashlib.sha256(f"{pixels.width}x{pixels.height}:".encode() + pixels.tobytes()).hexdigest()
