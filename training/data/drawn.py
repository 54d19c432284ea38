"""A folder of pictures that the base model drew, with the lines that rating and training want of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from nft_pipeline.files.picture_list import add_pictures, picture_name, read_rows

from ..bases.base import TrainBase, rows_of
from ..settings.config import TrainConfig


def draw_folder(
    base: TrainBase, config: TrainConfig, prompts: Sequence[str], folder: Path, count: int, seed: int | None = None
) -> int:
    """Draw pictures into a folder, each batch with its lines as soon as it is there; earlier ones stay.

    A file is called by its picture's content. A picture that has a line already keeps it, with its rating.

    Args:
        base: the run's base model, with text encoders and VAE.
        config: the run's settings.
        prompts: taken in turn, each as often as the others.
        folder: made when missing.
        count: how many to draw.
        seed: of the first picture's noise; None is the one behind the largest of this model's pictures there.

    Returns:
        How many pictures the folder then has.

    Raises:
        PictureListError: its metadata.jsonl cannot be read.
    """
    model = config.base_id or config.base_model
    own = [row for row in read_rows(folder) if row.get("model") == model]  # seeds of others may be beyond 64 bits
    seeds = [row["seed"] for row in own if isinstance(row.get("seed"), int)]
    first = seed if seed is not None else max(seeds, default=-1) + 1
    which = torch.arange(first, first + count) % len(prompts)
    used, place = which.unique(return_inverse=True)
    conditions, empty = base.encode_prompts([prompts[i] for i in used.tolist()]), base.encode_empty()
    one = base.latent_shape(1)

    def draw(rows: Tensor) -> Tensor:
        numbers = (first + row for row in rows.tolist())
        noise = torch.cat([torch.randn(one, generator=torch.Generator().manual_seed(number)) for number in numbers])
        return base.sample_batch(rows_of(conditions, place[rows]), noise, empty)

    with tqdm(total=count, desc="drawing", unit="picture") as bar:
        for rows, latents in base.fits.parts("drawing", torch.arange(count), config.pool_batch, draw):
            there = {row["image"] for row in read_rows(folder)}
            new = []
            for row, pixels in zip(rows.tolist(), base.decode_latents(latents), strict=True):
                facts = {
                    "prompt": prompts[int(which[row])],
                    "seed": first + row,
                    "guidance_scale": base.stock_guidance_scale,
                    "model": model,
                }
                if empty is not None and base.negative_prompt:
                    facts["negative_prompt"] = base.negative_prompt
                picture = Image.fromarray(pixels)
                if picture_name(picture) not in there:
                    new.append((picture, facts))
            add_pictures(folder, new)
            bar.update(len(rows))
    return len(read_rows(folder))
