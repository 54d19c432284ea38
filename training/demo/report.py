"""Tables and plots of what measure.py measured."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from nft_pipeline.dial.promise import mean_promise
from nft_pipeline.laws import LAWS

from .measure import CALIBRATED, Point, matched_quality

# A law beyond these goes round again; "lora weight" is the rival.
COLOURS = {**dict(zip(LAWS, cycle(("#d1653c", "#2f6fde", "#8a5bb5")))), CALIBRATED: "#3f9b57", "lora weight": "#7a7a80"}
MARKS = {**dict(zip(LAWS, cycle("soD"))), CALIBRATED: "P", "lora weight": "^"}


def law_table(points: Sequence[Point], rivals: Sequence[Point]) -> str:
    """A Markdown table of the laws: promised and measured rate, quality, and the rivals' quality at the same rate."""
    names = list(dict.fromkeys(point.method for point in rivals))
    head = ["law", "tilt", "promised P(o=1)", "measured P(o=1)", "off by", "quality"]
    head += [f"{name} at the same P(o=1): quality" for name in names]
    rows = []
    for point in points:
        promise = point.rate if point.promise is None else point.promise
        row = [point.method, f"{point.setting:+g}", f"{promise:.3f}", f"{point.rate:.3f} ± {point.error:.3f}"]
        row += [f"{point.rate - promise:+.3f}", f"{point.quality:.3f}"]
        for name in names:
            matched = matched_quality([rival for rival in rivals if rival.method == name], point.rate)
            row.append("out of its reach" if matched is None else f"{matched:.3f}")
        rows.append(row)
    return markdown(head, rows)


def rival_table(points: Sequence[Point]) -> str:
    """A Markdown table of methods that promise nothing."""
    rows = [[p.method, f"{p.setting:g}", f"{p.rate:.3f} ± {p.error:.3f}", f"{p.quality:.3f}"] for p in points]
    return markdown(["method", "setting", "measured P(o=1)", "quality"], rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def spread(values: Sequence[float]) -> str:
    """Mean, lowest and highest; of one run, its value."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def plot_promise(
    runs: Sequence[Sequence[Point]],
    rivals: Sequence[Point],
    path: Path,
    title: str,
    quality: str = "picture quality (template overlap)",
) -> None:
    """Left: measured rate over tilt beside the promise. Right: picture quality over measured rate, rivals included.

    Args:
        runs: the laws' points of one or more training runs; more than one are drawn with their spread.
        rivals: points of the rivals, of all runs.
        path: of the picture.
        title: above it.
        quality: what the points' quality is.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2))
    left, right = figure.subplots(1, 2)
    points = [point for run in runs for point in run]
    base, between = np.mean([(point.rate, point.spread) for point in points if point.setting == 0], axis=0).tolist()
    tilts = np.linspace(min(p.setting for p in points) - 0.2, max(p.setting for p in points) + 0.2, 200)
    promises = [mean_promise(base, between, tilt) for tilt in tilts]
    left.plot(tilts, promises, color="0.15", linewidth=1.2, label="promised (M11)")
    for law in dict.fromkeys(point.method for point in points):
        of_law = [point for point in points if point.method == law]
        settings = sorted({point.setting for point in of_law})
        rates = [[point.rate for point in of_law if point.setting == setting] for setting in settings]
        mean = [float(np.mean(values)) for values in rates]
        spread = [
            [m - min(v) for m, v in zip(mean, rates, strict=True)],
            [max(v) - m for m, v in zip(mean, rates, strict=True)],
        ]
        style: dict[str, Any] = {"color": COLOURS[law], "marker": MARKS[law], "markersize": 5}
        name = law if law == CALIBRATED else f"{law} law"
        left.errorbar(settings, mean, yerr=spread, capsize=3, label=f"{name}, measured", linewidth=1.2, **style)
        right.scatter(
            [p.rate for p in of_law],
            [p.quality for p in of_law],
            color=COLOURS[law],
            marker=MARKS[law],
            s=26,
            label=name,
        )
    for name in dict.fromkeys(point.method for point in rivals):
        of_name = sorted((p for p in rivals if p.method == name), key=lambda p: p.rate)
        right.scatter(
            [p.rate for p in of_name],
            [p.quality for p in of_name],
            color=COLOURS[name],
            marker=MARKS[name],
            s=26,
            label=name,
        )
    left.set(xlabel="tilt λ = 2/β", ylabel="P(o = 1)", ylim=(-0.02, 1.02))
    right.set(xlabel="measured P(o = 1)", ylabel=fill(quality, 34))
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
