"""An adapter as a run would leave it, with pictures and a report, ready to be shared."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from helpers.adapters import RANK, config_values, random_head
from nft_pipeline.adapter import Adapter, AdapterConfig, write_adapter
from nft_pipeline.hub_cards.report import Alpha, Curve, Hacking, Point, RunReport, Sample, Trained

STRENGTHS = (0.0, 0.5, 1.0, 1.5, 2.0)


def picture(shade: int = 0, size: int = 16, **texts: str) -> bytes:
    """A small PNG, with texts in it."""
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (shade, 80, 200)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def full_report(**changed: Any) -> RunReport:
    """Nothing in it is missing."""
    rising = [Point(s, 0.3 + 0.2 * s, 0.02, 128) for s in STRENGTHS]
    level = [Point(s, 5.5 - 0.1 * s, 0.05, 128) for s in STRENGTHS]
    samples = [
        Sample(f"samples/{seed}-{number}.png", "a red ring", seed, strength)
        for seed in (0, 1)
        for number, strength in enumerate(STRENGTHS)
    ]
    values: dict[str, Any] = {
        "rewards": (
            Curve("red", True, tuple(rising), "64 held-out prompts", "standard error"),
            Curve("aesthetic", False, tuple(level), "64 held-out prompts", "standard error"),
        ),
        "alpha": (Alpha(0.2, 0.94, 0.03, 1536), Alpha(0.9, 0.78, 0.07, 1536)),
        "samples": tuple(samples),
        "hacking": Hacking("none seen", "the reward it was not trained on stays level"),
        "strength_range": (0.5, 2.0),
        "trained": Trained("4096 pictures of the base model", 1, 22.5, "none", "2 CPU cores", 0.25),
    }
    return RunReport(**values | changed)


def light_report() -> RunReport:
    """Without curves, whose plots cost seconds; two pictures."""
    return RunReport(samples=full_report().samples[:2], trained=Trained(hours=0.25))


def extra_files(report: RunReport) -> dict[str, bytes]:
    """The report and the pictures it names."""
    pictures = {sample.file: picture(20 * number) for number, sample in enumerate(report.samples)}
    return {"run_report.json": report.to_json().encode(), **pictures}


def light_adapter(kind: str = "positive", seed: int = 1, **changed: Any) -> Adapter:
    """Two layers of a model that was never built, which spares the import of diffusers; A and B are random."""
    generator = torch.Generator().manual_seed(seed)
    lora = {
        f"transformer.blocks.{block}.attn.to_q.lora_{side}.weight": torch.randn(shape, generator=generator)
        for block in range(2)
        for side, shape in (("A", (RANK, 32)), ("B", (32, RANK)))
    }
    config = AdapterConfig.from_dict(config_values(None, kind, **changed))
    return Adapter(config, lora, random_head(seed=seed) if kind == "positive" else None)


def shared_adapter(folder: Path, adapter: Adapter | None = None, report: RunReport | None = None) -> Path:
    """Write an adapter with a report and pictures, without a card."""
    files = extra_files(light_report() if report is None else report)
    return write_adapter(folder, light_adapter() if adapter is None else adapter, files)
