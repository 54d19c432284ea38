"""The card's pictures: reward over strength, for light and for dark pages, and the strip of strengths."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from nft_pipeline.grid import labelled_grid

from .report import Curve, Sample

# Twice the width of a card, so that they are sharp there; letters are then 10 pt on the page.
WIDTH_INCHES, DPI, LETTERS = 7.5, 200, 10
THEMES = {
    "light": {"paper": "#ffffff", "ink": "#24292f", "grid": "#d8dee4", "trained": "#c2551f", "held out": "#1f6feb"},
    "dark": {"paper": "#0d1117", "ink": "#e6edf3", "grid": "#30363d", "trained": "#ff9a5c", "held out": "#6cb0ff"},
}
CELL = 180  # pixels that a small picture of the strip is enlarged to, about


def reward_plot(
    curves: Sequence[Curve],
    theme: str,
    recommended: float,
    span: tuple[float, float] | None,
    *,
    rewards: bool = True,
) -> bytes:
    """One panel per reward, those it was trained on first: the mean over strength, with its spread.

    Args:
        curves: at least one curve.
        theme: "light" or "dark".
        recommended: strength to mark.
        span: recommended range to shade, None for none.
        rewards: False for statistics of the pictures, which nothing is trained on.

    Returns:
        A PNG.
    """
    import matplotlib
    from matplotlib.figure import Figure

    colours = THEMES[theme]
    ordered = sorted(curves, key=lambda curve: not curve.trained)
    columns = min(2, len(ordered))
    lines = -(-len(ordered) // columns)
    style: Any = {
        **{name: colours["ink"] for name in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")},
        **{name: colours["paper"] for name in ("figure.facecolor", "axes.facecolor", "savefig.facecolor")},
        **{"axes.edgecolor": colours["grid"], "grid.color": colours["grid"], "font.size": LETTERS},
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH_INCHES, 3.0 * lines))
        axes = figure.subplots(lines, columns, squeeze=False)
        for axis in axes.flat[len(ordered) :]:
            axis.set_visible(False)
        for axis, curve in zip(axes.flat, ordered, strict=False):
            role = "trained" if curve.trained else "held out"
            if span is not None:
                axis.axvspan(*span, color=colours["grid"], alpha=0.35, linewidth=0)
            axis.axvline(recommended, color=colours["ink"], linewidth=1, linestyle=":")
            spread = [point.spread or 0.0 for point in curve.points]
            axis.errorbar(
                [point.strength for point in curve.points],
                [point.mean for point in curve.points],
                yerr=spread if any(spread) else None,
                color=colours[role],
                marker="o",
                markersize=5,
                linewidth=1.8,
                capsize=3,
            )
            note = f" ({'trained on' if curve.trained else 'not trained on'})" if rewards else ""
            axis.set_title(curve.name + note, fontsize=LETTERS)
            axis.set_xlabel("strength")
            axis.grid(True, linewidth=0.7)
            axis.set_axisbelow(True)
        for row in axes:
            row[0].set_ylabel("mean reward" if rewards else "mean")
        figure.tight_layout()
        buffer = io.BytesIO()
        # Without the version of matplotlib in it, the same numbers are the same file.
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def strip(samples: Sequence[Sample], pictures: Mapping[str, bytes]) -> bytes | None:
    """One picture with a row per prompt and seed and a column per strength; only rows that have every strength.

    Args:
        samples: the report's samples.
        pictures: the PNGs by the samples' file names.

    Returns:
        A PNG; None if there is no row of at least two strengths.
    """
    from PIL import Image

    rows: dict[tuple[str, int], dict[float, str]] = {}
    for sample in samples:
        rows.setdefault((sample.prompt, sample.seed), {})[sample.strength] = sample.file
    strengths = sorted(set.union(*(set(row) for row in rows.values()))) if rows else []
    whole = {key: row for key, row in rows.items() if set(row) == set(strengths)}
    if len(strengths) < 2 or not whole:
        return None
    grid = [
        [Image.open(io.BytesIO(pictures[row[strength]])).convert("RGB") for strength in strengths]
        for row in whole.values()
    ]
    labels = [f"{prompt}\nseed {seed}" for prompt, seed in whole]
    scale = max(1, CELL // grid[0][0].width)
    buffer = io.BytesIO()
    labelled_grid(grid, labels, [f"strength {strength:g}" for strength in strengths], scale=scale).save(buffer, "PNG")
    return buffer.getvalue()
