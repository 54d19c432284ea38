"""What the latents of the shapes model are: the leading components of 8 x 8 pixel patches.

An encoder left to itself spreads every detail over all channels, and a small denoiser then has to learn everything at
every noise level. Components of pixel patches keep the order pictures have: colour and place are large and are decided
at high noise, edges are small and follow. They are also known in closed form, so the denoiser trains on exact latents
of as many drawn scenes as it likes, beside the VAE rather than after it; the VAE's encoder and decoder learn the two
directions of the same map (`train_vae.py`).

Latents here are *scaled* ones, as the denoiser sees them: (z - shift_factor) * scaling_factor of the VAE's z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .world import SIZE, draw, sample_scene

PATCH = 8  # pixels, the VAE's factor


@dataclass(frozen=True)
class PatchComponents:
    """A linear map from patches to latent channels and back.

    Args:
        mean: of all patches, shape (3 * 64,).
        components: orthonormal, by falling spread, shape (3 * 64, channels).
        gain: what each component is multiplied with, shape (channels,).
    """

    mean: Tensor
    components: Tensor
    gain: Tensor

    @classmethod
    def of_drawn_scenes(cls, channels: int, scenes: int = 4000, seed: int = 0) -> PatchComponents:
        """The components of drawn scenes of the shapes world."""
        rng = np.random.default_rng(seed)
        return cls.of_pictures(np.stack([draw(sample_scene(rng, stray=1)) for _ in range(scenes)]), channels)

    @classmethod
    def of_pictures(cls, pictures: np.ndarray, channels: int) -> PatchComponents:
        """Principal components of pictures, uint8 (N, 64, 64, 3).

        A component of standard deviation s becomes a channel of deviation in proportion to sqrt(s): between s, which
        would leave edges to the very last step, and 1, which would give them the weight of colours. The first (the
        background's brightness) gets no more than the second. The mean square over all channels is 1.
        """
        patches = to_patches(pictures).flatten(0, 1).double()
        mean = patches.mean(0)
        variance, components = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        spread = variance.flip(0)[:channels].sqrt()
        wanted = spread.sqrt().clamp(max=spread[1].sqrt())
        wanted = wanted / wanted.square().mean().sqrt()
        components = components.flip(1)[:, :channels]
        # Eigenvectors have no sign of their own. A lopsided ramp fixes one: sums and largest entries tie where a
        # component is antisymmetric, and rounding would decide.
        ramp = torch.linspace(1, 2, len(mean), dtype=torch.double) ** 3
        components = components * (ramp @ components).sign()
        return cls(mean.float(), components.float(), (wanted / spread).float())

    def encode(self, pictures: np.ndarray) -> Tensor:
        """Scaled latents of pictures, uint8 (N, 64, 64, 3) -> float32 (N, channels, 8, 8)."""
        channels = (to_patches(pictures) - self.mean) @ self.components * self.gain
        return channels.transpose(1, 2).unflatten(-1, (SIZE // PATCH, SIZE // PATCH)).contiguous()


def to_patches(pictures: np.ndarray) -> Tensor:
    """Pictures, uint8 (N, 64, 64, 3), as rows of patches in [-1, 1]: float32 (N, 64, 192), patches row by row."""
    n, side = len(pictures), SIZE // PATCH
    x = torch.from_numpy(np.ascontiguousarray(pictures)).float() / 127.5 - 1.0
    return x.view(n, side, PATCH, side, PATCH, 3).permute(0, 1, 3, 5, 2, 4).reshape(n, side * side, 3 * PATCH * PATCH)
