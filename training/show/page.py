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
from .run_report import statistics_curves
from .sweep import Sweep

PAGE_FILE = "report.html"
GRIDS, GRID_WIDTH = 6, 1400  # shown, and pixels across at most
MOVING = 40  # a moving mean is over one part in so many of a run


def write_page(
    out: Path,
    config: TrainConfig,
    report: RunReport,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    strength: float = 1.0,
    why: str = "",
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
        strength: the recommended strength.
        why: the reason for it.
        sweep: the last sweep, None if there was none.
        calibration: how well the head does on held-out pictures.
        grids: the PNGs by step.
        dial: what the calibration found, None if there was none.
    """
    import yaml
    from jinja2 import Environment, StrictUndefined

    plots = {"Losses": _curves(rows.get("losses", ()), "step", smooth=True)}
    plots["Rewards of the rounds"] = _curves(rows.get("rounds", ()), "round", ("mean ", "spread "))
    at_one = [row for row in rows.get("sweeps", ()) if row.get("strength") == strength]
    if len(at_one) > 1:
        plots[f"Held-out prompts over the run, strength {strength:g}"] = _curves(at_one, "step", skip=("±", "change"))
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
        why=why,
        dial=dial,
        plots={name: _data_url(picture, "png") for name, picture in plots.items() if picture is not None},
        grids={step: _grid_url(path) for step, path in _some(grids or {}).items()},
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


def _grid_url(path: Path) -> str:
    """Small enough that a page of them opens at once."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    if picture.width > GRID_WIDTH:
        picture = picture.resize((GRID_WIDTH, round(picture.height * GRID_WIDTH / picture.width)))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return _data_url(buffer.getvalue(), "jpeg")


def _data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _curves(
    rows: Sequence[Mapping[str, Any]],
    x: str,
    only: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    smooth: bool = False,
) -> bytes | None:
    """One panel per column, over `x`; None if there is nothing to draw.

    Args:
        only: how the names of the columns to draw begin, () for all columns of numbers.
        skip: columns whose names contain one of these are left out.
        smooth: draw a moving mean over the values.
    """
    names = [
        name
        for name in dict.fromkeys(name for row in rows for name in row)
        if name not in ("step", "round", "strength")
        and (not only or name.startswith(only))
        and not any(part in name for part in skip)
        and all(isinstance(row.get(name, 0.0), (int, float)) for row in rows)
    ]
    if not names:
        return None
    import numpy as np
    from matplotlib.figure import Figure

    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4.0 * columns, 2.6 * lines))
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        known = [row for row in rows if name in row]
        at, values = [row[x] for row in known], np.array([row[name] for row in known], dtype=float)
        width = max(1, len(values) // MOVING) if smooth else 1
        faint, mark = (0.3 if width > 1 else 1.0), ("." if len(at) < MOVING else "")
        axis.plot(at, values, color="#c2551f", linewidth=1.4, alpha=faint, marker=mark)
        if width > 1:
            mean = np.convolve(values, np.full(width, 1 / width), mode="valid")
            axis.plot(at[width - 1 :], mean, color="#c2551f", linewidth=1.6)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(x, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(True, linewidth=0.5, color="#d8dee4")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
