"""Which pictures are worth rating next: those of which an adapter's alpha head is least sure (uncertainty sampling)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..data.folder import load_picture
from .judges import read_noised
from .measure_adapter import draws_of

LEVELS = (0.1, 0.3, 0.5)  # noise levels whose alphas are averaged: the head is better above its lowest ones
SEED = 660_001


def most_useful_first(
    pipe: Any, name: str, folder: Path, pictures: Sequence[str], prompts: Mapping[str, str], batch: int = 8
) -> list[str]:
    """The pictures in the order in which a rating of them teaches most: alpha near 1/2 comes first.

    Args:
        pipe: a guided pipeline with the adapter loaded.
        name: the adapter's name there.
        folder: the pictures' folder.
        pictures: relative paths.
        prompts: of each, by its path.
        batch: pictures at once.

    Raises:
        ValueError: the adapter has no alpha head.
        DataError: a picture cannot be read.
    """
    if pipe.nft_adapters[name].head is None:
        raise ValueError(
            f"{pipe.nft_adapters[name].config.name} has no alpha head, which would say what it is unsure of. Take a "
            "positive adapter, or leave --by out"
        )
    texts = sorted(set(prompts[picture] for picture in pictures))
    draws = draws_of(pipe, name, texts, batch)
    alphas = np.zeros(len(pictures))
    with torch.inference_mode(), tqdm(total=len(pictures), desc="reading alpha", unit="picture") as bar:
        for start in range(0, len(pictures), batch):
            some = pictures[start : start + batch]
            pixels = np.stack([load_picture(folder / picture, draws.base.resolution) for picture in some])
            latents = draws.base.encode_pictures(pixels).float().cpu()
            places = torch.tensor([texts.index(prompts[picture]) for picture in some])
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(SEED + start))
            read = [read_noised(draws, latents, places, level, noise) for level in LEVELS]
            alphas[start : start + len(some)] = np.mean(read, axis=0)
            bar.update(len(some))
    return [pictures[place] for place in np.argsort(np.abs(alphas - 0.5), kind="stable").tolist()]
