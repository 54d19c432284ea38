"""report.html: a run on one page, with everything inside it, to be opened from anywhere or sent to somebody.

Paths on this machine therefore appear in it as plain names; settings.yaml has them in full.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from nft_pipeline.files.atomic import atomic_write_bytes
from nft_pipeline.hub_cards.plots import reward_plot
from nft_pipeline.hub_cards.report import RunReport

from ..learn.calibration import Calibration, plot_reliability
from ..learn.export import without_paths
from ..settings.config import TrainConfig
from ..settings.public import public_settings
from .dial_words import DialWords
from .plots import curves
from .run_report import statistics_curves
from .sweep import Sweep
from .watch import Choice

PAGE_FILE = "report.html"
GRIDS, GRID_WIDTH = 6, 1400  # shown, and pixels across at most


def write_page(
    out: Path,
    config: TrainConfig,
    report: RunReport,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    choice: Choice | None = None,
    doubts: Sequence[str] = (),
    sweep: Sweep | None = None,
    calibration: Sequence[Calibration] = (),
    grids: Mapping[int, Path] | None = None,
    dial: DialWords | None = None,
) -> Path:
    """Write the page.

    Args:
        out: the run's folder.
        config: the run's settings.
        report: the report that is stored beside the adapter.
        rows: the flat lines of each table of the records.
        choice: the strength that the adapter is stored with; None where nothing was measured.
        doubts: what speaks against the adapter, a sentence or two each.
        sweep: the last sweep, None if there was none.
        calibration: how well the head does on held-out pictures.
        grids: the PNGs by step.
        dial: what the calibration found, None if there was none.
    """
    import yaml
    from jinja2 import Environment, StrictUndefined

    strength = 1.0 if choice is None else choice.strength
    plots = {"Losses": curves({"": rows.get("losses", ())}, "step", smooth=True)}
    plots["Speed and memory"] = curves({"": rows.get("speed", ())}, "step", smooth=True)
    plots["Rewards of the rounds"] = curves({"": rows.get("rounds", ())}, "round", ("mean ", "spread "))
    at_one = [row for row in rows.get("sweeps", ()) if row.get("strength") == strength]
    if len(at_one) > 1:
        plots[f"Held-out prompts over the run, strength {strength:g}"] = curves(
            {"": at_one}, "step", skip=("±", "change")
        )
    if report.rewards:
        plots["Held-out rewards over strength"] = reward_plot(report.rewards, "light", strength, report.strength_range)
    if sweep is not None:
        plots["Statistics of the pictures over strength"] = reward_plot(
            statistics_curves(sweep), "light", strength, report.strength_range, rewards=False
        )
    if calibration:
        buffer = io.BytesIO()
        plot_reliability(calibration, buffer, "alpha on held-out samples")
        plots["Alpha calibration"] = buffer.getvalue()
    settings = without_paths(public_settings(config.to_dict()))
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = environment.from_string((Path(__file__).parent / "page.html.jinja").read_text(encoding="utf-8"))
    page = template.render(
        config=config,
        report=report,
        strength=strength,
        choice=choice,
        doubts=doubts,
        dial=dial,
        plots={name: data_url(picture, "png") for name, picture in plots.items() if picture is not None},
        grids={step: grid_url(path) for step, path in _some(grids or {}).items()},
        settings=settings,
        settings_text=yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
    )
    return atomic_write_bytes(out / PAGE_FILE, page.encode())


def _some(grids: Mapping[int, Path]) -> dict[int, Path]:
    """At most `GRIDS` of them, the first and the last among them."""
    steps = sorted(grids)
    if len(steps) > GRIDS:
        steps = [steps[round(i * (len(steps) - 1) / (GRIDS - 1))] for i in range(GRIDS)]
    return {step: grids[step] for step in steps}


def grid_url(path: Path) -> str:
    """Small enough that a page of them opens at once."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    if picture.width > GRID_WIDTH:
        picture = picture.resize((GRID_WIDTH, round(picture.height * GRID_WIDTH / picture.width)))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return data_url(buffer.getvalue(), "jpeg")


def data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
