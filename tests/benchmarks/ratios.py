"""Ways of doing a thing, timed in rounds and compared within each. Standard library only."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping


def in_rounds(names: Iterable[str], rounds: Iterable[int]) -> Iterator[tuple[str, int]]:
    """Every name once a round, in an order of the round's own; round 0 is for warming up."""
    for count in rounds:
        order = list(names)
        random.Random(count).shuffle(order)
        yield from ((name, count) for name in order)


def table(
    seconds: Mapping[str, list[float]],
    of: Mapping[str, str],
    limits: Mapping[str, float | None],
    more: tuple[str, Callable[[str], str]] | None = None,
) -> tuple[str, list[str]]:
    """The ratios as a Markdown table, and a line for each above its limit.

    Args:
        seconds: a time for each round, by way.
        of: the way each is divided by; a second run of that, "<way>, a second time", is averaged with it.
        limits: of a ratio's median.
        more: the name of a last column, and what stands in it.
    """
    head = ["way", "ms (median)", "divided by", "ratio", "quartiles", "bar", *([more[0]] if more else [])]
    lines, missed = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"], []
    for name, own in seconds.items():
        plain = [other for other in (of[name], f"{of[name]}, a second time") if other in seconds]
        means = [statistics.mean(values) for values in zip(*(seconds[other] for other in plain), strict=True)]
        ratios = [value / mean for value, mean in zip(own, means, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        limit = limits[name]
        cells = [name, f"{1000 * statistics.median(own):.0f}", of[name], f"{middle:.3f}", f"{low:.3f} to {high:.3f}"]
        cells += ["" if limit is None else f"{limit:.2f}", *([more[1](name)] if more else [])]
        lines.append(f"| {' | '.join(cells)} |")
        if limit is not None and middle > limit:
            missed.append(f"{name}: {middle:.3f} is above {limit:.2f}")
    return "\n".join(lines), missed
