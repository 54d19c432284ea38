"""A folder of pictures that the base model drew, with the lines that rating and training want of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from nft_pipeline.files.picture_list import read_rows, update_rows

from ..bases.base import TrainBase, rows_of
from ..settings.config import TrainConfig


def draw_folder(
    base: TrainBase, config: TrainConfig, prompts: Sequence[str], folder: Path, count: int, seed: int | None = None
) -> int:
    """Draw pictures into a folder, each batch with its lines as soon as it is there; earlier ones stay.

    Args:
        base: the run's base model, with text encoders and VAE.
        config: the run's settings.
        prompts: taken in turn, each as often as the others.
        folder: made when missing.
        count: how many to draw.
        seed: of the first picture's noise; None goes on behind those that are there.

    Returns:
        How many pictures the folder then has.

    Raises:
        PictureListError: its metadata.jsonl cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    there = len(read_rows(folder))
    first = there if seed is None else seed
    which = torch.arange(first, first + count) % len(prompts)
    used, place = which.unique(return_inverse=True)
    conditions, empty = base.encode_prompts([prompts[i] for i in used.tolist()]), base.encode_empty()
    one = base.latent_shape(1)

    def draw(rows: Tensor) -> Tensor:
        seeds = (first + row for row in rows.tolist())
        noise = torch.cat([torch.randn(one, generator=torch.Generator().manual_seed(number)) for number in seeds])
        return base.sample_batch(rows_of(conditions, place[rows]), noise, empty)

    with tqdm(total=count, desc="drawing", unit="picture") as bar:
        for rows, latents in base.fits.parts("drawing", torch.arange(count), config.pool_batch, draw):
            lines = {}
            for row, pixels in zip(rows.tolist(), base.decode_latents(latents), strict=True):
                name = f"{first + row:06d}.png"
                Image.fromarray(pixels).save(folder / name)
                lines[name] = {
                    "prompt": prompts[int(which[row])],
                    "seed": first + row,
                    "guidance_scale": base.stock_guidance_scale,
                    "model": config.base_id or config.base_model,
                }
            update_rows(folder, lines)
            bar.update(len(rows))
    return len(read_rows(folder))
