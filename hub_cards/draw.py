"""Drawing the pictures of a card: the same prompt and noise at several strengths, as `diffusion-nft sample` draws."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nft_pipeline.adapter import AdapterConfig
from nft_pipeline.adapters.names import CONFIG_FILE
from nft_pipeline.files.atomic import atomic_folder, atomic_write_bytes, recover
from nft_pipeline.sampling import draw, pick_device, pick_dtype

from .report import REPORT_FILE, RunReport, Sample

if TYPE_CHECKING:
    from PIL.Image import Image


def draw_samples(
    folder: Path, prompts: Sequence[str], seeds: Sequence[int], strengths: Sequence[float], *, model: str | None = None
) -> None:
    """Draw, and put the pictures into `folder/samples` and the list of them into its run_report.json.

    Args:
        folder: the adapter's folder; pictures in samples are replaced, the report's other numbers stay.
        prompts: one or more prompts.
        seeds: seeds of the starting noise; every prompt is drawn from every seed.
        strengths: every picture is drawn at every strength.
        model: the base model, default the one the adapter names.

    Raises:
        AdapterError: no adapter there, a faulty report, or another base model.
    """
    import torch

    from nft_pipeline.pipeline import DiffusionNFTPipeline

    folder = recover(folder)
    config = AdapterConfig.from_json((folder / CONFIG_FILE).read_bytes())
    path = folder / REPORT_FILE
    report = RunReport.from_json(path.read_bytes()) if path.is_file() else RunReport()
    device = pick_device("auto")
    dtype = pick_dtype("auto", device)
    pipe = DiffusionNFTPipeline.from_pretrained(model or config.base_model.id, nft_adapter=folder, dtype=dtype)
    rows = [(prompt, seed) for prompt in prompts for seed in seeds]
    with torch.inference_mode():
        columns, _ = draw(pipe.to(device), rows, strengths, guidance_scale=config.guidance_scale)
    files, made = sample_files(rows, strengths, columns)
    with atomic_folder(folder / "samples") as new:
        for name, data in files.items():
            (new / Path(name).name).write_bytes(data)
    atomic_write_bytes(path, replace(report, samples=tuple(made)).to_json().encode())


def sample_files(
    rows: Sequence[tuple[str, int]], strengths: Sequence[float], columns: Sequence[Sequence[Image]]
) -> tuple[dict[str, bytes], list[Sample]]:
    """PNGs by their paths in an adapter's folder, and the list of them for its report, row by row.

    Args:
        rows: (prompt, seed) of each row.
        strengths: the strength of each column.
        columns: `columns[strength][row]`.
    """
    files, made = dict[str, bytes](), list[Sample]()
    for number, (prompt, seed) in enumerate(rows):
        for strength, pictures in sorted(zip(strengths, columns, strict=True), key=lambda column: column[0]):
            name = f"samples/{number}-strength-{strength:g}.png"
            buffer = io.BytesIO()
            pictures[number].save(buffer, "PNG")
            files[name] = buffer.getvalue()
            made.append(Sample(name, prompt, seed, float(strength)))
    return files, made
