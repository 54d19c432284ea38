"""Draws the cells of a contact sheet, and lays the pictures out: one IMAGE for strengths x seeds or prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nft_pipeline.errors import GuidanceError
from nft_pipeline.grid import labelled_grid, scale_for

from .. import host
from ..build import Guided
from .cells import Cell, batches_of


@dataclass(frozen=True)
class Sampling:
    """KSampler's settings.

    Args:
        steps, cfg, sampler, scheduler, denoise: as on KSampler.
    """

    steps: int
    cfg: float
    sampler: str
    scheduler: str
    denoise: float


def draw_cells(
    cells: Sequence[Cell],
    guided: Guided,
    latent: Mapping[str, Any],
    positives: Sequence[Any],
    negative: Any,
    vae: Any,
    sampling: Sampling,
    together: int,
) -> list[Tensor]:
    """The pictures of each cell, (pictures of the latent, H, W, 3) in [0, 1]; those that KSampler draws with that seed.

    Args:
        cells: what is drawn, see `cells.cells_of`.
        guided: gives the MODEL for the strengths of one batch, which have one mode.
        latent: LATENT; every cell is drawn from it, all of its pictures.
        positives: CONDITIONING by number of the prompt.
        negative: CONDITIONING.
        vae: decodes.
        sampling: KSampler's settings.
        together: pictures in one batch at most, see `cells.batches_of`.

    Raises:
        GuidanceError: the latent is one of several parts, such as picture and sound.
    """
    if getattr(latent["samples"], "is_nested", False):
        raise GuidanceError(
            "this latent holds several parts, such as picture and sound, and a sheet can only show pictures. Connect a "
            "latent of pictures."
        )
    batches = batches_of(cells, len(latent["samples"]), together, sampling.sampler, guided.modes)
    bar = host.progress(len(batches) * (sampling.steps + 1))
    drawn: list[Tensor] = []
    for number, batch in enumerate(batches):
        model = guided.at([cell.strength for cell in batch], len(latent["samples"]))
        start = host.latent_of(model, latent)
        # The seed is that of the steps as well, for samplers that draw noise on the way: those have a batch per cell.
        samples = host.sample(
            model,
            torch.cat([host.noise_of(start, cell.seed, latent) for cell in batch]),
            torch.cat([start] * len(batch)),
            positives[batch[0].prompt],
            negative,
            steps=sampling.steps,
            cfg=sampling.cfg,
            sampler=sampling.sampler,
            scheduler=sampling.scheduler,
            denoise=sampling.denoise,
            mask=_repeated(latent.get("noise_mask"), len(latent["samples"]), len(batch)),
            seed=batch[0].seed,
            callback=_teller(bar, number * sampling.steps),
        )
        drawn += samples.chunk(len(batch))
    pictures = []
    for i, samples in enumerate(drawn):  # after all sampling, so that model and VAE change places once
        pictures.append(host.decode(vae, samples).float().cpu())
        bar.update_absolute(len(batches) * sampling.steps + (i + 1) * len(batches) // len(drawn))
    return pictures


def sheet_of(
    cells: Sequence[Cell], pictures: Sequence[Tensor], strengths: Sequence[float], prompts: Sequence[str], title: str
) -> Tensor:
    """The sheet as an IMAGE, (1, H, W, 3): a column for each strength, and a row for each picture of a seed and prompt.

    Args:
        cells: in the order of `cells.cells_of`.
        pictures: of each cell, all equally many.
        strengths: of the columns.
        prompts: of the rows; written beside them if there are several.
        title: above the sheet.
    """
    several, labels, rows = len(pictures[0]) > 1, [], []
    for start in range(0, len(cells), len(strengths)):
        cell = cells[start]
        for i in range(len(pictures[start])):
            words = [prompts[cell.prompt]] if len(prompts) > 1 else []
            words += [f"seed {cell.seed}" + (f", picture {i + 1}" if several else "")]
            labels.append("\n".join(words))
            rows.append([_picture(pictures[start + column][i]) for column in range(len(strengths))])
    columns = [f"strength {strength:g}" if strength else "strength 0\nwithout guidance" for strength in strengths]
    sheet = labelled_grid(rows, labels, columns, scale_for(rows[0][0].width), title)
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)[None]


def _picture(pixels: Tensor) -> Image.Image:
    return Image.fromarray((pixels[..., :3].clamp(0, 1) * 255).round().numpy().astype(np.uint8))


def _repeated(mask: Tensor | None, pictures: int, times: int) -> Tensor | None:
    """A mask for all pictures of a batch of cells; one that does not name every picture is spread by ComfyUI itself."""
    return torch.cat([mask] * times) if mask is not None and len(mask) == pictures else mask


def _teller(bar: Any, before: int) -> Callable[..., None]:
    def tell(step: int, *rest: Any) -> None:
        bar.update_absolute(before + step + 1)

    return tell
