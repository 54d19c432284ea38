"""Cheap numbers about pictures that fall when a reward is being hacked: detail, colours, light, variety.

They know nothing of what a picture shows. Each is a mean over pixels or pairs, on pictures shrunk to at most 64 pixels
per side, so that they cost almost nothing compared with sampling. numpy and PIL only.
"""

from __future__ import annotations

import itertools

import numpy as np
from PIL import Image

EDGE = 64  # pixels per side, at most
STEP = 0.1  # of the range of the luma, from one pixel to the next: an edge
LEVELS = 4  # of each colour in the histogram
_LUMA = np.array([0.299, 0.587, 0.114])


def shrunk(pictures: np.ndarray) -> np.ndarray:
    """uint8 (B, H, W, 3) to float (B, h, w, 3) in [0, 1], h and w at most `EDGE`."""
    height, width = pictures.shape[1:3]
    scale = EDGE / max(height, width)
    if scale >= 1:
        return pictures / 255.0
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.stack([np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BOX)) for p in pictures]) / 255.0


def edge_density(pictures: np.ndarray) -> np.ndarray:
    """Share of neighbouring pixels whose luma differs by more than a tenth, (B,); pictures as `shrunk` gives them."""
    luma = pictures @ _LUMA
    across = np.abs(np.diff(luma, axis=2)) > STEP
    down = np.abs(np.diff(luma, axis=1)) > STEP
    edges = across.sum((1, 2)) + down.sum((1, 2))
    return edges / max(1, across[0].size + down[0].size)


def colour_entropy(pictures: np.ndarray) -> np.ndarray:
    """Entropy in bits of the histogram over 4 x 4 x 4 colours, (B,): 0 for one flat colour, at most 6."""
    levels = np.minimum((pictures * LEVELS).astype(int), LEVELS - 1)
    codes = (levels @ np.array([LEVELS**2, LEVELS, 1])).reshape(len(pictures), -1)
    shares = np.stack([np.bincount(code, minlength=LEVELS**3) for code in codes]) / codes.shape[1]
    return -(shares * np.log2(np.where(shares > 0, shares, 1.0))).sum(1)


def brightness(pictures: np.ndarray) -> np.ndarray:
    """Mean luma in [0, 1], (B,)."""
    return (pictures @ _LUMA).mean((1, 2))


def distance(pictures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Root mean square difference of pictures, one by one, (B,)."""
    return np.sqrt(np.square(pictures - others).mean((1, 2, 3)))


def diversity(pictures: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Mean distance of each picture from the others of its group, (B,): how much the pictures of one prompt differ.

    Args:
        groups: the prompt of each picture, (B,); a group of one picture has NaN.
    """
    total, count = np.zeros(len(pictures)), np.zeros(len(pictures))
    for group in np.unique(groups):
        for i, j in itertools.combinations(np.flatnonzero(groups == group), 2):
            apart = float(np.sqrt(np.square(pictures[i] - pictures[j]).mean()))
            total[[i, j]] += apart
            count[[i, j]] += 1
    return np.divide(total, count, out=np.full(len(pictures), np.nan), where=count > 0)
