"""Drawing the pictures of a card: the same prompt and noise at several strengths, as `diffusion-nft sample` draws."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nft_pipeline.adapter import AdapterConfig
from nft_pipeline.adapter_read import CONFIG_FILE
from nft_pipeline.atomic import atomic_folder, atomic_write_bytes
from nft_pipeline.cli import command_parser
from nft_pipeline.commands import sample

from .report import REPORT_FILE, RunReport, Sample


def draw_samples(
    folder: Path, prompts: Sequence[str], seeds: Sequence[int], strengths: Sequence[float], *, model: str | None = None
) -> None:
    """Draw, and put the pictures into `folder/samples` and the list of them into its run_report.json.

    Args:
        folder: the adapter's; pictures that are in samples are replaced, the report's other numbers stay.
        prompts: one or more.
        seeds: of the starting noise; every prompt is drawn from every seed.
        strengths: every picture is drawn at every strength.
        model: the base model, default the one the adapter names.

    Raises:
        AdapterError: no adapter there, a faulty report, or another base model.
    """
    import torch

    from nft_pipeline.pipeline import DiffusionNFTPipeline

    config = AdapterConfig.from_json((folder / CONFIG_FILE).read_bytes())
    path = folder / REPORT_FILE
    report = RunReport.from_json(path.read_bytes()) if path.is_file() else RunReport()
    arguments = [*prompts, "--cfg", str(config.guidance_scale), "--strengths", *map(str, strengths)]
    args = command_parser("sample", sample).parse_args(arguments)
    device = sample.pick_device("auto")
    dtype = sample.pick_dtype("auto", device)
    pipe = DiffusionNFTPipeline.from_pretrained(model or config.base_model.id, nft_adapter=folder, dtype=dtype)
    rows = [(prompt, seed) for prompt in prompts for seed in seeds]
    with torch.inference_mode():
        columns, _ = sample.draw(pipe.to(device), rows, args)
    made: list[Sample] = []
    with atomic_folder(folder / "samples") as new:
        for strength, pictures in zip(strengths, columns, strict=True):
            for number, ((prompt, seed), picture) in enumerate(zip(rows, pictures, strict=True)):
                name = f"{number}-strength-{strength:g}.png"
                buffer = io.BytesIO()
                picture.save(buffer, "PNG")
                (new / name).write_bytes(buffer.getvalue())
                made.append(Sample(f"samples/{name}", prompt, seed, strength))
    made.sort(key=lambda entry: (rows.index((entry.prompt, entry.seed)), entry.strength))
    atomic_write_bytes(path, replace(report, samples=tuple(made)).to_json().encode())
