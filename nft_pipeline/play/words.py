"""What the page says of a picture, as HTML: the chance that it is liked, and what the strength does to its prompt."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ..dial.promise import Promise
    from ..engine.stats import NFTStats
    from .studio import Drawn, View

WIDE, HIGH, EDGE = 240, 72, 4  # of the curve, in its own units
ASK = '<div class="numbers"><p class="says">Type a prompt: what to draw, in words.</p></div>'


def numbers(view: View) -> str:
    """All that is known so far of a view."""
    stats = view.running if view.after is None else view.after.stats
    chance = _last(stats, "forecasts")
    head = f'<div class="chance">{_percent(chance)}</div>'
    if view.after is None:
        steps = 0 if stats is None else stats.steps
        says = f"Drawing: {steps} steps so far." if steps else "Drawing."
    elif chance is None:
        says = "This adapter has no alpha head, so it cannot say how likely a picture is to be liked."
    else:
        says = f"This picture will be liked with {_percent(chance)}."
    before = _last(None if view.before is None else view.before.stats, "forecasts")
    if view.wish.strength and before is not None:
        says += f" The one at strength 0: {_percent(before)}."
    lines = [f'<p class="says">{says}</p>', *_promised(view.promise, view.done), _cost(view.after, stats)]
    return f'<div class="numbers">{head}<div class="lines">{"".join(lines)}</div>{_curve(stats)}</div>'


def fault(error: Exception) -> str:
    """What went wrong, for people to read."""
    message = html.escape(str(error) or type(error).__name__)
    return f'<div class="numbers"><p class="fault" role="alert">{message}</p></div>'


def about(name: str, description: str) -> str:
    """The line under the title: which adapter, and what its reward likes."""
    return f'<p class="about"><b>{html.escape(name)}</b> {html.escape(description)}</p>'


def _promised(promise: Promise | None, done: bool) -> list[str]:
    if promise is None:
        return (
            ["<p>Nothing is known of the share of liked pictures: this adapter is not calibrated.</p>"] if done else []
        )
    return [f"<p>Pictures of this prompt: {html.escape(str(promise))}.</p>"]


def _cost(drawn: Drawn | None, stats: NFTStats | None) -> str:
    if drawn is None or stats is None:
        return ""
    alpha = _last(stats, "alphas")
    read = "" if alpha is None else f"alpha {alpha:.2f} at the last step, "
    return f'<p class="cost">{read}{stats.forwards} forwards, {drawn.seconds:.1f} s</p>'


def _last(stats: NFTStats | None, field: str) -> float | None:
    """alpha or forecast at the last step where a head was asked; None if none was."""
    of_steps = _finite(stats, field)
    return None if len(of_steps) == 0 else of_steps[-1][1]


def _finite(stats: NFTStats | None, field: str) -> list[tuple[int, float]]:
    """(step, value) wherever there is a value."""
    values: Tensor | None = None if stats is None or not stats.steps else getattr(stats, field)
    if values is None:
        return []
    return [(step, value) for step, value in enumerate(values[0, :, 0].tolist()) if math.isfinite(value)]


def _percent(chance: float | None) -> str:
    return "–" if chance is None else f"{chance:.0%}".replace("%", " %")


def _curve(stats: NFTStats | None) -> str:
    """Forecast and alpha over the steps, from 0 to 1 upwards; nothing where no head was asked."""
    forecast, alpha = _finite(stats, "forecasts"), _finite(stats, "alphas")
    if stats is None or len(forecast) < 2:
        return ""
    lines = "".join(
        f'<polyline class="{name}" points="{_points(values, stats.steps)}"/>'
        for name, values in (("alpha", alpha), ("forecast", forecast))
    )
    label = f"The forecast over the steps, from {_percent(forecast[0][1])} to {_percent(forecast[-1][1])}"
    return (
        f'<figure class="curve"><svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{label}">'
        f'<line x1="0" x2="{WIDE}" y1="{HIGH / 2}" y2="{HIGH / 2}"/>{lines}</svg>'
        '<figcaption><span class="forecast">forecast</span> and <span class="alpha">alpha</span> while it was drawn'
        "</figcaption></figure>"
    )


def _points(values: list[tuple[int, float]], steps: int) -> str:
    across, up = (WIDE - 2 * EDGE) / max(steps - 1, 1), HIGH - 2 * EDGE
    return " ".join(f"{EDGE + step * across:.1f},{HIGH - EDGE - value * up:.1f}" for step, value in values)
