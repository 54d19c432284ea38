"""Curves of a run's records, one panel per column, of one run or of several in the same panels."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

MOVING = 40  # a moving mean is over one part in so many of a run
COLOURS = ("#c2551f", "#1f6fc2", "#3a8f3a", "#8250df")


def curves(
    series: Mapping[str, Sequence[Mapping[str, Any]]],
    x: str,
    only: tuple[str, ...] = (),
    skip: tuple[str, ...] = (),
    smooth: bool = False,
) -> bytes | None:
    """A PNG with one panel per column, over `x`; None if there is nothing to draw.

    Args:
        series: rows by the name that the legend gives them; one whose name is "" has none.
        only: how the names of the columns to draw begin, () for all columns of numbers.
        skip: columns whose names contain one of these are left out.
        smooth: draw a moving mean over the values.
    """
    everything = [row for rows in series.values() for row in rows]
    names = [
        name
        for name in dict.fromkeys(name for row in everything for name in row)
        if name not in ("step", "round", "strength")
        and (not only or name.startswith(only))
        and not any(part in name for part in skip)
        and all(isinstance(row.get(name, 0.0), (int, float)) for row in everything)
    ]
    if not names:
        return None
    from matplotlib.figure import Figure

    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4.0 * columns, 2.6 * lines))
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        for (label, rows), colour in zip(series.items(), COLOURS, strict=False):
            _draw(axis, [row for row in rows if name in row], x, name, label, colour, smooth)
        if any(series):
            axis.legend(fontsize=7)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(x, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(True, linewidth=0.5, color="#d8dee4")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _draw(
    axis: Any, rows: Sequence[Mapping[str, Any]], x: str, name: str, label: str, colour: str, smooth: bool
) -> None:
    import numpy as np

    at, values = [row[x] for row in rows], np.array([row[name] for row in rows], dtype=float)
    width = max(1, len(values) // MOVING) if smooth else 1
    faint, mark = (0.3 if width > 1 else 1.0), ("." if len(at) < MOVING else "")
    axis.plot(at, values, color=colour, linewidth=1.4, alpha=faint, marker=mark, label=label if width == 1 else None)
    if width > 1:
        mean = np.convolve(values, np.full(width, 1 / width), mode="valid")
        axis.plot(at[width - 1 :], mean, color=colour, linewidth=1.6, label=label)
