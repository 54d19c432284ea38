"""Drawing many pictures with a guided pipeline, and the device and dtype to do it in: what several commands share.

torch is imported inside the functions, so that importing this module stays cheap.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .errors import GuidanceError

if TYPE_CHECKING:
    from PIL.Image import Image

    from .engine.stats import NFTStats

# The fields of diffusers' outputs that hold pictures, and those that hold something else.
_PICTURES = ("images", "image")
_NO_PICTURES = ("frames", "video", "audios", "audio", "sound")


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

    check_draws_pictures(pipe)
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
        GuidanceError: it gave videos or sounds.
    """
    for name in _PICTURES:
        if getattr(result, name, None) is not None:
            return list(getattr(result, name))
    raise _no_pictures(pipe)


def check_draws_pictures(pipe: Any) -> None:
    """Refuse a guided pipeline of videos or sounds before it draws any.

    Which it is, is said by the outputs that the stock class's call names, diffusers' dataclasses. A class of which
    they say nothing goes on, and `pictures_of` looks at what it gave.

    Raises:
        GuidanceError: it draws no pictures.
    """
    call = inspect.unwrap(pipe._nft_stock_class.__call__)
    if not inspect.isfunction(call):
        return
    named = [call.__globals__.get(name) for name in call.__code__.co_names if name.endswith("Output")]
    outputs = [output for output in named if isinstance(output, type) and dataclasses.is_dataclass(output)]
    fields = {entry.name for output in outputs for entry in dataclasses.fields(output)}
    if fields & set(_NO_PICTURES) and not fields & set(_PICTURES):
        raise _no_pictures(pipe)


def _no_pictures(pipe: Any) -> GuidanceError:
    return GuidanceError(f"{type(pipe).__name__} draws no pictures, and nothing else can be shown here")


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
