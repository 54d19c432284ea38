"""NFTStats.plot: what is drawn, what is written, and what it says when it cannot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nft_pipeline.engine.stats import NFTStats, StatsRecorder

STEPS, SAMPLES = 12, 20


def record(*adapters: str) -> NFTStats:
    """A record with known curves: alpha rises towards the picture, each adapter at its own height."""
    recorder = StatsRecorder(adapters)
    for i in range(STEPS):
        t = torch.full((SAMPLES,), 1.0 - i / STEPS)
        spread = torch.linspace(-0.05, 0.05, SAMPLES)
        alphas = torch.stack([0.1 + 0.2 * k + 0.5 * (1 - t) + spread for k in range(len(adapters))])
        recorder.step(t, alphas, 2.0 * alphas, 0.3 * t * alphas.sum(0), passes=1 + len(adapters))
    return recorder.stats()


def test_it_draws_the_record() -> None:
    stats = record("default")
    figure = stats.plot()
    panels = figure.axes
    labels = ["alpha", "scale s", "push, relative to the picture"]
    assert [axes.get_ylabel() for axes in panels] == labels
    for axes, values in zip(panels, (stats.alpha, stats.scale, stats.push), strict=True):
        assert axes.get_xlabel() == "noise level t"
        left, right = axes.get_xlim()
        assert left > 1 > 0 > right, "sampling goes from left to right, from noise to picture"
        *thin, mean = axes.get_lines()
        assert len(thin) == 16, "no more than can be told apart"
        for i, line in enumerate(thin):
            np.testing.assert_allclose(line.get_ydata(), values[:, i])
        np.testing.assert_allclose(mean.get_xdata(), stats.noise_level.mean(1))
        np.testing.assert_allclose(mean.get_ydata(), values.mean(1))
        assert mean.get_linewidth() > max(line.get_linewidth() for line in thin)
        assert axes.get_legend() is None, "one adapter needs no name"


def test_several_adapters_have_a_legend_and_colours_of_their_own() -> None:
    stats = record("text", "aesthetic")
    panels = stats.plot().axes
    for axes, values in zip(panels[:2], (stats.alphas, stats.scales), strict=True):
        means = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
        assert [line.get_label() for line in means] == ["text", "aesthetic"]
        assert means[0].get_color() != means[1].get_color()
        for line, value in zip(means, values, strict=True):
            np.testing.assert_allclose(line.get_ydata(), value.mean(1))
    shown = [text.get_text() for axes in panels if axes.get_legend() for text in axes.get_legend().get_texts()]
    assert shown == ["text", "aesthetic"]


@pytest.mark.parametrize("adapters", [("default",), ("text", "aesthetic")])
def test_it_writes_a_picture(tmp_path: Path, adapters: tuple[str, ...]) -> None:
    record(*adapters).plot(tmp_path / "stats.png")
    with Image.open(tmp_path / "stats.png") as picture:
        assert picture.format == "PNG" and picture.width > 2 * picture.height
        colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=1 << 24) or []}
    assert (31, 119, 180) in colours, "the first adapter's blue"
    assert ((255, 127, 14) in colours) == (len(adapters) == 2), "the second one's orange"
    record(*adapters).plot(str(tmp_path / "stats.svg"))
    assert (tmp_path / "stats.svg").read_text().lstrip().startswith("<?xml")


def test_what_was_not_asked_leaves_a_gap_and_no_error(tmp_path: Path) -> None:
    """Outside the interval alpha is NaN."""
    stats = record("default")
    stats.alphas[:, : STEPS // 2] = torch.nan
    mean = stats.plot(tmp_path / "gap.png").axes[0].get_lines()[-1]
    assert np.isnan(mean.get_ydata()).tolist() == [i < STEPS // 2 for i in range(STEPS)]


def test_nothing_recorded() -> None:
    with pytest.raises(ValueError, match=r"nothing was recorded, so there is nothing to plot. Run the pipeline first."):
        StatsRecorder().stats().plot()


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Any = None
    monkeypatch.setitem(sys.modules, "matplotlib.figure", missing)
    with pytest.raises(
        ImportError, match=r"a plot needs matplotlib: pip install matplotlib, or diffusion-nft\[train\]"
    ):
        record("default").plot()
