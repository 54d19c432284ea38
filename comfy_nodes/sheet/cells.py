"""What a contact sheet shows: strengths side by side, seeds and prompts below each other; and which share a batch.

strengths   "0, 0.5, 1" or "-1 to 2 by 0.5"
seeds       "7, 8" or "1 to 4"
prompts     one a line
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from nft_pipeline.errors import GuidanceError

from ..build import parse_strengths

MOST = 256  # cells of a sheet; more is a slip of the pen, and hours
SEEDS = 2**64  # ComfyUI's own are below it
BEFORE_AND_AFTER = (0.0, 1.0)
# Each picture of a batch goes its own way with these: they draw no noise on the way, and their steps do not depend on
# the other pictures. With any other sampler a cell would be another picture than the one that is drawn alone.
SIDE_BY_SIDE = frozenset(
    (
        "deis",
        "dpm_2",
        "dpmpp_2m",
        "dpmpp_2m_cfg_pp",
        "euler",
        "euler_cfg_pp",
        "gradient_estimation",
        "gradient_estimation_cfg_pp",
        "heun",
        "heunpp2",
        "ipndm",
        "ipndm_v",
        "lms",
        "res_multistep",
        "res_multistep_cfg_pp",
        "uni_pc",
        "uni_pc_bh2",
    )
)
_NUMBER = r"[-+]?[\d.]+(?:e[-+]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s+to\s+({_NUMBER})(?:\s+by\s+({_NUMBER}))?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Cell:
    """One place of the sheet.

    Args:
        prompt: which of the prompts; 0 if there is one conditioning for all.
        seed: of the noise.
        strength: of the adapter.
    """

    prompt: int
    seed: int
    strength: float


def strengths_of(text: str) -> list[float]:
    """Strengths from a text; without any, 0 and 1.

    Raises:
        GuidanceError: something that is neither a finite number nor a range.
    """
    return parse_strengths(_written_out(text, "strengths", by="0.5")) if text.strip(" ,\n") else list(BEFORE_AND_AFTER)


def seeds_of(text: str) -> list[int]:
    """Seeds from a text; without any, 0.

    Raises:
        GuidanceError: something that is no whole number from 0 to 2^64 - 1.
    """
    seeds = []
    for part in filter(
        None, (part.strip() for part in _written_out(text, "seeds", by="1").replace("\n", ",").split(","))
    ):
        if not part.isdecimal() or int(part) >= SEEDS:
            raise GuidanceError(
                f"{part!r} in seeds is no seed, expected whole numbers from 0 to 2^64 - 1, such as 7, 8 or 1 to 4"
            )
        seeds.append(int(part))
    return seeds or [0]


def prompts_of(text: str) -> list[str]:
    """One prompt a line; empty lines are none."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def cells_of(strengths: Sequence[float], seeds: Sequence[int], prompts: int) -> list[Cell]:
    """All cells, row by row: every prompt with every seed is a row.

    Raises:
        GuidanceError: more than `MOST`.
    """
    rows = [(prompt, seed) for prompt in range(prompts) for seed in seeds]
    if len(rows) * len(strengths) > MOST:
        raise GuidanceError(
            f"the sheet would have {len(strengths)} strengths x {len(seeds)} seeds x {prompts} prompts = "
            f"{len(rows) * len(strengths)} places, and {MOST} is the most. Take fewer of them."
        )
    return [Cell(prompt, seed, strength) for prompt, seed in rows for strength in strengths]


def batches_of(
    cells: Sequence[Cell], pictures: int, together: int, sampler: str, modes: Mapping[float, str]
) -> list[list[Cell]]:
    """Cells that are drawn in one batch: of one prompt, in one mode, and with a sampler that lets pictures go their own
    ways.

    Args:
        cells: all of them.
        pictures: in the latent, all of which each cell shows.
        together: pictures a batch may have; a single cell may have more.
        sampler: ComfyUI's name of it.
        modes: the mode of each strength.
    """
    most = max(1, together // pictures) if sampler in SIDE_BY_SIDE else 1
    batches: list[list[Cell]] = []
    for cell in cells:
        first = batches[-1][0] if batches and len(batches[-1]) < most else None
        if first is not None and (first.prompt, modes[first.strength]) == (cell.prompt, modes[cell.strength]):
            batches[-1].append(cell)
        else:
            batches.append([cell])
    return batches


def _written_out(text: str, name: str, by: str) -> str:
    """The text with each range as the numbers that it stands for."""
    return ", ".join(_numbers(part, name, by) for part in text.replace("\n", ",").split(","))


def _numbers(part: str, name: str, by: str) -> str:
    match = _RANGE.fullmatch(part)
    if match is None:
        return part
    try:
        first, last, step = (Decimal(number) for number in (match[1], match[2], match[3] or by))
    except InvalidOperation:
        raise GuidanceError(f'{part.strip()!r} in {name} is no range, expected some such as "0 to 2 by 0.5"') from None
    count = int((last - first) / step) + 1 if step and (last - first) / step >= 0 else 0
    if not 1 <= count <= MOST:
        raise GuidanceError(
            f'{part.strip()!r} in {name} is a range of {count} numbers, expected 1 to {MOST}: "0 to 2 by 0.5" goes '
            'upwards, "2 to 0 by -0.5" downwards'
        )
    return ", ".join(f"{first + i * step:f}" for i in range(count))
