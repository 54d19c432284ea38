"""Offline data: a folder of pictures and metadata.jsonl, one JSON object per line, turned into a pool once.

    {"image": "cats/1.png", "prompt": "a cat", "score": 0.8}
    {"image": "cats/2.png", "prompt": "a cat", "liked": false, "seed": 3, "guidance_scale": 1.0}

Every line that is judged has a score, any number, or every one has liked, true or false; lines with neither are left
out. Pictures keep their shape as nearly as the model's sizes allow: each is scaled and cropped in its middle to the
size nearest to its proportions among those of the run's area, and pictures of one size make a bucket.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from nft_pipeline.checks import number, optional, value_faults
from nft_pipeline.files.picture_list import CHOSEN_BY, METADATA, Line, PictureListError, drawn_by, read_lines
from nft_pipeline.files.pictures import read_picture, upright_size

from ..bases.base import TrainBase
from ..bases.noising import interpolate, velocity
from ..settings.choices import Method
from .optimality import Optimality, by_prompt, optimality
from .parts import Parts
from .pool import Pool

# `diffusion-nft score`, `rate`, `draw` and `play` and ComfyUI's Rate Images write the last seven and `batch_index`,
# which training does not read.
KEYS = {
    "image",
    "prompt",
    "score",
    "liked",
    "seed",
    "batch_index",
    "guidance_scale",
    "model",
    "negative_prompt",
    "scores",
    "reward",
    "adapter",
    "strength",
    CHOSEN_BY,
}
_CHECKS = {"guidance_scale": optional(number())}
SHOWN_FAULTS = 20
RESIDUAL_SEED = 770_003


class DataError(ValueError):
    """A folder of pictures that cannot be trained on; the message lists every fault."""


@dataclass(frozen=True)
class Picture:
    """One line of metadata.jsonl; `model` is the one that drew the picture without an adapter, None where none did."""

    path: Path
    prompt: str
    score: float
    guidance_scale: float | None = None
    model: str | None = None


@dataclass(frozen=True)
class Folder:
    """What a folder holds.

    Args:
        pictures: in the order of the lines.
        liked: whether their scores are likes, 0 or 1.
        unjudged: lines left out because they have neither a score nor liked, such as pictures not rated yet.
    """

    pictures: tuple[Picture, ...]
    liked: bool
    unjudged: int = 0

    @property
    def guidance_scales(self) -> set[float | None]:
        """The classifier-free guidance the pictures say they were sampled with."""
        return {picture.guidance_scale for picture in self.pictures}


def read_folder(folder: str | Path) -> Folder:
    """Read and check metadata.jsonl; pictures are opened later.

    A picture may come in several lines, with other prompts for one, and may lie outside the folder: training only reads
    them. The commands that write the list refuse both (see `nft_pipeline.files.picture_list`).

    Raises:
        DataError: no such file, or every fault of its lines in one report.
    """
    root = Path(folder)
    path = root / METADATA
    if not path.is_file():
        raise DataError(f"there is no {path}; expected one JSON object per line with image, prompt, and score or liked")
    try:
        lines = read_lines(root)
    except PictureListError as error:
        raise DataError(str(error)) from error
    pictures: list[Picture] = []
    faults: list[str] = []
    kinds: set[str] = set()
    unjudged = 0
    for line in lines:
        line_faults = _line_faults(line, root)
        faults += line_faults
        entry = line.row
        if not line_faults and "liked" not in entry and "score" not in entry:
            unjudged += 1
        elif not line_faults:
            kinds.add("liked" if "liked" in entry else "score")
            score = float(entry["liked"] if "liked" in entry else entry["score"])
            own = entry.get("guidance_scale"), drawn_by(entry)
            pictures.append(Picture(root / entry["image"], entry["prompt"], score, *own))
    if len(kinds) > 1:
        faults.append("some lines have a score and some have liked; expected the same for all")
    if not pictures and not faults:
        faults.append(f"there is no line with a score or liked ({unjudged} have neither)")
    if faults:
        shown = faults[:SHOWN_FAULTS] + (
            [f"... and {len(faults) - SHOWN_FAULTS} more"] if len(faults) > SHOWN_FAULTS else []
        )
        raise DataError(f"{path} has faults:\n" + "\n".join(f"  - {fault}" for fault in shown))
    return Folder(tuple(pictures), kinds == {"liked"}, unjudged)


def _line_faults(line: Line, root: Path) -> list[str]:
    """What is wrong with a line: as a line of any list of pictures, and as one to be trained on."""
    entry = line.row
    if not entry:
        return list(line.faults)
    own = [f"{key!r} is not known; expected {', '.join(sorted(KEYS))}" for key in sorted(entry.keys() - KEYS)]
    prompt, image = entry.get("prompt"), entry.get("image")
    if not isinstance(prompt, str) or not prompt.strip():
        own.append(f"prompt is {prompt!r}, expected text")
    if "score" in entry and "liked" in entry:
        own.append("it has score and liked; take out the one that is not to be learned from")
    own += value_faults({"guidance_scale": entry.get("guidance_scale")}, _CHECKS)
    if isinstance(image, str) and not (root / image).is_file():
        own.append(f"there is no picture {root / image}")
    return [*line.faults, *(f"line {line.number}: {fault}" for fault in own)]


def bucket_size(width: int, height: int, area: int, step: int) -> tuple[int, int]:
    """(height, width) of about `area` pixels, multiples of `step`, nearest to a picture's proportions."""
    ratio = math.log(width / height)
    best, distance = (step, step), math.inf
    for high in range(step, int(4 * math.sqrt(area)) + step, step):
        wide = max(step, round(area / high / step) * step)
        off = abs(math.log(wide / high) - ratio)
        if off < distance - 1e-9:
            best, distance = (high, wide), off
    return best


def load_picture(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A picture scaled and cropped in its middle to (height, width): uint8 (h, w, 3).

    Raises:
        DataError: it cannot be read as a picture.
    """
    height, width = size
    with _named(path):
        picture = read_picture(path)
    scale = max(height / picture.height, width / picture.width)
    wide, high = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    left, top = (wide - width) // 2, (high - height) // 2
    scaled = picture.resize((wide, high), Image.Resampling.LANCZOS)
    return np.asarray(scaled.crop((left, top, left + width, top + height)))


@torch.no_grad()
def folder_pool(
    folder: Folder,
    base: TrainBase,
    method: Method,
    *,
    at: float | None = None,
    batch: int = 8,
    parts: Parts | None = None,
    stop: Callable[[], None] = lambda: None,
) -> tuple[Pool, Optimality]:
    """Encode a folder's pictures and prompts, once.

    Args:
        base: with text encoders and VAE; its resolution gives the area.
        method: from scores to r; likes are taken as they are.
        at: for "threshold".
        parts: where each batch is kept as soon as it is encoded; what is there is not encoded again.
        stop: called before each batch; may raise.

    Raises:
        DataError: a picture that cannot be read.
        OptimalityError: scores the method cannot take.
    """
    scores = np.array([picture.score for picture in folder.pictures])
    prompts = sorted({picture.prompt for picture in folder.pictures})
    index = {prompt: i for i, prompt in enumerate(prompts)}
    groups = by_prompt(np.array([index[picture.prompt] for picture in folder.pictures]))
    found = optimality({"score": scores}, "likes" if folder.liked else method, groups=groups, at=at)
    area, step = math.prod(base.resolution), 2 * base.pixels_per_latent
    sizes = []
    for picture in folder.pictures:
        with _named(picture.path):
            sizes.append(bucket_size(*upright_size(picture.path), area, step))
    known = sorted(set(sizes))
    bucket = torch.tensor([known.index(size) for size in sizes])
    place, buckets = torch.zeros(len(sizes), dtype=torch.int64), []
    latents: dict[int, Tensor] = {}
    for part in [] if parts is None else parts.kept():
        latents |= dict(zip(part["rows"].tolist(), part["latents"], strict=True))
    with tqdm(total=len(sizes), initial=len(latents), desc="encoding pictures", unit="picture") as bar:
        for number, size in enumerate(known):
            rows = (bucket == number).nonzero().squeeze(1)
            place[rows] = torch.arange(len(rows))
            left = [row for row in rows.tolist() if row not in latents]
            for some in torch.tensor(left).split(batch) if left else ():
                stop()
                pictures = np.stack([load_picture(folder.pictures[i].path, size) for i in some.tolist()])
                encoded = base.encode_pictures(pictures).cpu().half()
                if parts is not None:
                    parts.keep({"rows": some, "latents": encoded})
                latents |= dict(zip(some.tolist(), encoded, strict=True))
                bar.update(len(some))
            buckets.append(torch.stack([latents[row] for row in rows.tolist()]))
    prompt = torch.tensor([index[picture.prompt] for picture in folder.pictures])
    r = torch.from_numpy(found.r).float()
    return Pool(tuple(buckets), bucket, place, prompt, base.encode_prompts(prompts), r), found


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Within this context what PIL raises becomes a DataError that names the picture."""
    try:
        yield
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as a picture: {error}. Replace it, or delete its line") from error


def split(pool: Pool, every: int) -> tuple[Pool, Pool]:
    """(training, held out): every `every`-th sample is held out."""
    out = torch.arange(len(pool)) % every == every - 1
    return pool.rows(~out), pool.rows(out)


@torch.no_grad()
def residual(base: TrainBase, pool: Pool, batch: int, levels: Iterable[float] = (0.3, 0.6, 0.9)) -> float:
    """Mean of |v_old - y|^2 over a pool's samples and noise levels, in velocity: how badly the model predicts them.

    Pictures that the model could have drawn itself have the same residual as its own samples. The ratio of the two is
    the support gap.
    """
    # A seed that nothing is sampled with: a picture with the noise it was drawn from is predicted too well.
    generator, total, count = torch.Generator().manual_seed(RESIDUAL_SEED), 0.0, 0
    low, high = base.noise_range()
    for level in levels:
        for rows in pool.batches(16):  # whose noise is drawn together, however many go through the model at once
            x_0 = pool.x_0(rows)
            t = torch.full((len(rows),), low + (high - low) * level)
            x_t, y = interpolate(x_0, torch.randn(x_0.shape, generator=generator), t)
            output = base.predict_rows(x_t, t, pool.conditions_of(rows), batch).float()
            total += float((velocity(base.prediction, output, x_t, t) - y).square().flatten(1).mean(1).sum())
            count += len(rows)
    return total / count


def support_gap(base: TrainBase, pool: Pool, own: Tensor, prompt: Tensor, batch: int) -> float:
    """`residual` of a pool's pictures over that of the base model's own samples.

    Args:
        own: latents the base model sampled, (n, C, h, w), for the prompts `prompt` (n,), rows of the pool's conditions.
        batch: rows of a forward, at most.
    """
    drawn = Pool.of(own.half(), prompt, pool.conditions, torch.zeros(len(own)))
    return residual(base, pool, batch) / residual(base, drawn, batch)
