"""Drawing many pictures with a guided pipeline, and the device and dtype to do it in: what several commands share.

torch is imported inside the functions, so that importing this module stays cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .errors import GuidanceError

if TYPE_CHECKING:
    from PIL.Image import Image

    from .engine.stats import NFTStats


def draw(
    pipe: Any, rows: Sequence[tuple[str, int]], strengths: Sequence[float], *, batch: int = 8, **call: Any
) -> tuple[list[list[Image]], list[list[NFTStats]]]:
    """Draw every row at every strength, with a progress bar; a row starts from the same noise at each.

    Args:
        pipe: the guided pipeline, without an adapter for strength 0 alone; its own progress bar is switched off.
        rows: (prompt, seed) of each.
        strengths: one per column.
        batch: pictures drawn at once, at least 1.
        call: further arguments of the pipeline's call, such as nft_law or guidance_scale (default: its own defaults).

    Returns:
        `columns[strength][row]`, and for each strength the stats of its batches.

    Raises:
        GuidanceError: the pipeline draws no pictures but videos or sounds.
    """
    import torch
    from tqdm import tqdm

    pipe.set_progress_bar_config(disable=True)
    columns: list[list[Image]] = []
    stats: list[list[NFTStats]] = []
    with tqdm(total=len(rows) * len(strengths), unit="picture") as bar:
        for strength in strengths:
            bar.set_description(f"strength {strength:g}")
            columns.append([])
            stats.append([])
            for start in range(0, len(rows), batch):
                part = rows[start : start + batch]
                result = pipe(
                    prompt=[prompt for prompt, _ in part],
                    # On the CPU whatever the device, so that a seed is the same noise everywhere.
                    generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in part],
                    nft_strength=None if strength == 0 and not pipe.nft_adapters else strength,
                    **call,
                )
                columns[-1].extend(pictures_of(result, pipe))
                if pipe.nft_stats is not None:
                    stats[-1].append(pipe.nft_stats)
                bar.update(len(part))
    return columns, stats


def pictures_of(result: Any, pipe: Any) -> list[Image]:
    """The pictures that a call of a pipeline gave.

    Raises:
        GuidanceError: it draws no pictures but videos or sounds.
    """
    pictures = getattr(result, "images", None)
    if pictures is None:
        raise GuidanceError(f"{type(pipe).__name__} draws no pictures, and nothing else can be shown here")
    return list(pictures)


def pick_device(name: str) -> str:
    """The device asked for, or with "auto" the first of cuda, mps, cpu that is there.

    Raises:
        ValueError: the device is unknown or not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--device is {name!r}, which cannot be used here ({reason}); leave it out, or give cpu"
        ) from error
    return name


def pick_dtype(name: str, device: str) -> Any:
    """The torch dtype asked for; with "auto" bfloat16 where the GPU computes in it, else float32."""
    import torch

    if name != "auto":
        return getattr(torch, name)
    fast = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32
