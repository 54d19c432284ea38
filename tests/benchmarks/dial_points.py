"""The points of tests/benchmarks/dial.py as the repository keeps them, so that the page can be made again from them and
the table can grow: all its adapters together are hours of work.

    dial_points/tastes.json                       the words of the tastes, in order, with their rates in the first pool
    dial_points/TASTE/size40_seed0.safetensors    what was measured of one adapter

A file holds for each measure a tensor (points, prompts) of means over the pictures of a prompt, and in its header how
each point was drawn, the adapter's config with its dial, and where and when this was measured. Among the points are
those of the base model, drawn from the same noises. Where the trainer refused the ratings, the file has no points.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save

from nft_pipeline.adapter import AdapterConfig, read_adapter
from nft_pipeline.files.atomic import atomic_write_bytes
from nft_pipeline.training.devices.precision import choose_precision

from .dial_cells import Cell, Setting, adapter_of, base_point, digest_of, read_point, slug, write_json
from .dial_numbers import MEASURES, ByPrompt, by_prompt
from .tastes import MEASUREMENT

POINTS = Path(__file__).with_name("dial_points")
NAMES = ("liked", *MEASURES)


@dataclass(frozen=True)
class Kept:
    """What was measured of one adapter.

    Args:
        cell: its training.
        config: its config, with its dial; None where the trainer refused the ratings.
        points: how each point was drawn, and its measures by prompt.
        base: the base model's points from the same noises, by the scale of classifier-free guidance.
        n: pictures of a point of the base model, and of one in the adapter's own mode.
        device: on what it was measured.
        made: when, in ISO form.
    """

    cell: Cell
    config: AdapterConfig | None
    points: tuple[tuple[Setting, ByPrompt], ...]
    base: dict[float, ByPrompt]
    n: int
    device: str
    made: str


def keep_tastes(tastes: dict[str, float], folder: Path) -> None:
    """Keep the tastes: from then on every measurement is of these."""
    write_json(folder / "tastes.json", tastes)


def kept_tastes(folder: Path) -> dict[str, float] | None:
    """The tastes that are kept; None if there are none yet."""
    path = folder / "tastes.json"
    return dict(json.loads(path.read_text())) if path.is_file() else None


def keep_cell(cell: Cell, settings: Sequence[Setting], n: int, work: Path, folder: Path) -> bool:
    """Keep what was measured of a cell, if all of it was; returns whether it is kept.

    Args:
        cell: one that was trained, or refused.
        settings: all that is to be measured of it; none if it was refused.
        n: pictures of a point of the base model.
        work: where the work is done.
        folder: where points are kept.
    """
    adapter = adapter_of(cell, work)
    config = read_adapter(adapter).config if settings else None
    if config is not None and config.dial is None:
        return False
    measured = []
    for setting in settings:
        point = read_point(cell.folder(work), setting, digest_of(adapter, setting.kind))
        if point is None:
            return False
        measured.append((setting, point))
    scales = sorted({setting.guidance_scale for setting in settings})
    base = [(Setting("base", "", 0.0, n, scale), base_point(cell.taste, cell.seed, n, scale, work)) for scale in scales]
    together = [(setting, by_prompt(point, MEASUREMENT)) for setting, point in [*base, *measured]]
    tensors = {name: np.array([values[name] for _, values in together], np.float16) for name in NAMES}
    _, precision = choose_precision("auto", torch.device("cpu"))
    header = {
        "cell": json.dumps(asdict(cell)),
        "config": "" if config is None else config.to_json(),
        "settings": json.dumps([asdict(setting) for setting, _ in together]),
        "n": str(n),
        "device": f"{platform.machine()} CPU, {precision.partition(':')[0]}, torch {torch.__version__}",
        "made": date.today().isoformat(),
    }
    path = kept_path(cell, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, save(tensors, header))
    return True


def kept_path(cell: Cell, folder: Path) -> Path:
    """The file of a cell."""
    return folder / slug(cell.taste) / f"size{cell.size}_seed{cell.seed}.safetensors"


def read_kept(path: Path) -> Kept:
    """What a file of `keep_cell` holds."""
    with safe_open(path, "np") as file:
        header, values = file.metadata(), {name: file.get_tensor(name).astype(float) for name in NAMES}
    settings = [Setting(**entry) for entry in json.loads(header["settings"])]
    points = [(setting, {name: values[name][place] for name in NAMES}) for place, setting in enumerate(settings)]
    return Kept(
        Cell(**json.loads(header["cell"])),
        AdapterConfig.from_json(header["config"], str(path)) if header["config"] else None,
        tuple((setting, point) for setting, point in points if setting.kind != "base"),
        {setting.guidance_scale: point for setting, point in points if setting.kind == "base"},
        int(header["n"]),
        header["device"],
        header["made"],
    )
