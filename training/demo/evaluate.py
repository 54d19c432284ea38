"""Evaluates an adapter that there is: any prompts, any rewards, any number of steps, at several strengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nft_pipeline.sampling import draw

from ..rewards.find import Scorer
from ..show.sweep import SweepPoint, measured, points_of
from .report import markdown


@dataclass(frozen=True)
class Drawing:
    """What is drawn: `n` pictures of these prompts in turn.

    Args:
        prompts: picture i is drawn from prompt i mod len(prompts).
        n: pictures per strength.
        seed: of the first picture's noise; that of picture i is seed + i, at every strength.
        batch: pictures drawn at once.
        call: further arguments of the pipeline's call, such as num_inference_steps.
    """

    prompts: Sequence[str]
    n: int
    seed: int
    batch: int
    call: Mapping[str, Any]


def evaluate(
    pipe: Any, drawing: Drawing, strengths: Sequence[float], rewards: Mapping[str, Scorer]
) -> tuple[SweepPoint, ...]:
    """Means of rewards and of the pictures' statistics, and their changes from strength 0, by rising strength.

    Args:
        pipe: a guided pipeline with its adapter; without one `strengths` is 0 alone.
        drawing: what is drawn.
        strengths: 0 is added where it is missing, as changes are from there.
        rewards: by name, each on its own scale; may be empty.

    Raises:
        RewardError: a reward failed.
    """
    places = [number % len(drawing.prompts) for number in range(drawing.n)]
    texts = [drawing.prompts[place] for place in places]
    rows = [(text, drawing.seed + number) for number, text in enumerate(texts)]

    def pictures(strength: float) -> np.ndarray:
        columns, _ = draw(pipe, rows, [strength], batch=drawing.batch, **drawing.call)
        return np.stack([np.asarray(picture.convert("RGB")) for picture in columns[0]])

    groups = np.array(places)
    return points_of(measured(pictures, texts, groups, sorted({0.0, *strengths}), rewards), groups)


def table(points: Sequence[SweepPoint]) -> str:
    """Markdown with a row for each measure and a column for each strength; behind a mean is its change from 0."""
    rows = []
    for name in points[0].values:
        cells = []
        for point in points:
            value, change = point.values[name], point.changes[name]
            cell = f"{value.mean:.3f} ± {value.error:.3f}" if value.n else "-"
            cells.append(cell + (f" ({change.mean:+.3f} ± {change.error:.3f})" if value.n and point.strength else ""))
        rows.append([name, *cells])
    return markdown(["", *(f"strength {point.strength:g}" for point in points)], rows)
