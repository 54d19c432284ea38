"""The page of tests/benchmarks/dial.py, docs/measured/dial.md, from the points that are kept (dial_points.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from nft_pipeline.adapter import AdapterConfig
from nft_pipeline.dial.scale import weight_of
from nft_pipeline.modes import MODES
from nft_pipeline.training.demo.report import markdown

from .dial_cells import PICTURES, TILTS, WATCHED, WEIGHTS, Cell, Setting
from .dial_numbers import MEASURES, ByPrompt, beside_rival, mean_and_error, promised_by_prompt, replicates
from .dial_points import Kept
from .tastes import DIAL, MEASUREMENT

WITHIN = {"own": 0.03, "other": 0.05}


@dataclass(frozen=True)
class Row:
    """One point beside its promise and beside LoRA weight.

    Args:
        off: measured rate less promised, with its standard error.
        stated: the standard error that the dial itself states at this tilt; None before a calibration.
        weight: the LoRA weight that the point was drawn with, if it is one; nothing is then to be compared.
        beside: our measures less LoRA weight's at our rate, for each replicate of the bootstrap; None where LoRA weight
            does not reach the rate or was not measured.
    """

    cell: Cell
    setting: Setting
    off: float
    error: float
    stated: float | None
    weight: float | None
    beside: dict[str, np.ndarray] | None

    @property
    def group(self) -> str:
        """ "before" or "after", the mode, and the guidance scale if there is one: rows of a group are comparable."""
        cfg = f", CFG {self.setting.guidance_scale:g}" if self.setting.guidance_scale > 1 else ""
        role = f", {self.setting.role}" if self.setting.role else ""
        return f"{self.setting.kind}, {self.setting.mode}{role}{cfg}"

    @property
    def bar(self) -> float:
        """How near the promise it is held to be, beyond one standard error of the measurement."""
        own = self.setting.role == "own mode" and self.setting.guidance_scale == 1
        return WITHIN["own" if own else "other"] + self.error

    @property
    def is_within(self) -> bool:
        """Whether it is as near."""
        return abs(self.off) <= self.bar


def rows_of(measured: Sequence[Kept]) -> list[Row]:
    """All points but those of the base model and of LoRA weight by its name."""
    weights, rows, bases = replicates(MEASUREMENT), [], Bases(measured)
    for kept in measured:
        config = kept.config
        if config is None:
            continue
        plain = [(setting, point) for setting, point in kept.points if setting.guidance_scale == 1]
        rivals = [(0.0, kept.base[1.0])]
        rivals += [(weight, point) for setting, point in plain if (weight := lora_weight(config, setting)) is not None]
        rivals.sort(key=lambda pair: pair[0])
        for setting, ours in kept.points:
            if setting.kind == "weight":
                continue
            off, error = mean_and_error(ours["liked"] - bases.promise(kept.cell.taste, setting))
            weight = lora_weight(config, setting)
            comparable = setting.guidance_scale == 1 and weight is None
            beside = beside_rival(ours, [rival for _, rival in rivals], weights) if comparable else None
            rows.append(Row(kept.cell, setting, off, error, stated_error(config, setting), weight, beside))
    return rows


class Bases:
    """How far each prompt's pictures of the base model are liked, by taste and scale of classifier-free guidance, from
    all seeds that were measured."""

    def __init__(self, measured: Sequence[Kept]) -> None:
        self.n = measured[0].n
        self._liked: dict[tuple[str, float], dict[int, np.ndarray]] = {}
        for kept in measured:
            for scale, point in kept.base.items():
                self._liked.setdefault((kept.cell.taste, scale), {})[kept.cell.seed] = point["liked"]

    def pictures(self, taste: str, scale: float = 1.0) -> int:
        """How many there are."""
        return self.n * len(self._liked[taste, scale])

    def rate(self, taste: str, scale: float = 1.0) -> float:
        """The share of them that is liked."""
        return float(np.mean(list(self._liked[taste, scale].values())))

    def promise(self, taste: str, setting: Setting) -> np.ndarray:
        """What is promised for each prompt, (P,)."""
        scale = setting.guidance_scale
        liked = np.mean(list(self._liked[taste, scale].values()), 0)
        return promised_by_prompt(liked, self.pictures(taste, scale) // MEASUREMENT, setting.value)


def lora_weight(config: AdapterConfig, setting: Setting) -> float | None:
    """The LoRA weight that a setting is: by its name, or by a map of one weight for all samples in one pass."""
    if setting.kind == "weight":
        return setting.value
    if setting.kind != "after" or config.dial is None:
        return None
    tilt_map = config.dial.map_for(setting.mode, setting.guidance_scale)
    if tilt_map is None or tilt_map.slope > 0 or not MODES[tilt_map.mode].one_pass:
        return None
    return float(weight_of(tilt_map, torch.tensor(setting.value, dtype=torch.float64)))


def stated_error(config: AdapterConfig, setting: Setting) -> float | None:
    """The standard error that an adapter's dial states of the share of liked pictures at a setting."""
    if setting.kind != "after" or config.dial is None:
        return None
    tilt_map = config.dial.map_for(setting.mode, setting.guidance_scale)
    return None if tilt_map is None else float(np.interp(setting.value, tilt_map.tilts, tilt_map.errors))


def in_order(values: Iterable[str]) -> list[str]:
    """Each once, in the order of their first coming."""
    return list(dict.fromkeys(values))


def promise_table(rows: Sequence[Row]) -> str:
    """By taste and size: how far each way of drawing is off its promise."""
    groups = in_order(row.group for row in rows)
    table = []
    for taste, size in dict.fromkeys((row.cell.taste, row.cell.size) for row in rows):
        line = [taste, f"{size:,}"]
        for group in groups:
            some = [r for r in rows if (r.cell.taste, r.cell.size, r.group) == (taste, size, group)]
            line.append(_off(some) if some else "")
        table.append(line)
    table.append(["all", "", *(_off([r for r in rows if r.group == group]) for group in groups)])
    return markdown(["taste", "learned from", *groups], table)


def _off(rows: Sequence[Row]) -> str:
    off = np.abs([row.off for row in rows])
    return f"{off.mean():.3f}, {off.max():.3f}, {np.mean([row.is_within for row in rows]):.0%}"


def tilt_table(rows: Sequence[Row]) -> str:
    """By tilt: the mean of measured less promised over all tastes, sizes and seeds."""
    groups = in_order(row.group for row in rows)
    table = []
    for tilt in TILTS:
        line = [f"{tilt:+g}"]
        for group in groups:
            off = [row.off for row in rows if row.group == group and row.setting.asked == tilt]
            line.append(f"{np.mean(off):+.3f} ± {np.std(off):.3f}" if off else "")
        table.append(line)
    return markdown(["tilt", *groups], table)


def rival_table(rows: Sequence[Row]) -> str:
    """By way of drawing, taste and size: our measures less LoRA weight's at an equal rate."""
    table = []
    rows = [row for row in rows if row.weight is None]
    for group in in_order(row.group for row in rows if row.setting.guidance_scale == 1):
        of_group = [row for row in rows if row.group == group]
        for taste, size in dict.fromkeys((row.cell.taste, row.cell.size) for row in of_group):
            some = [row for row in of_group if (row.cell.taste, row.cell.size) == (taste, size)]
            table.append([group, taste, f"{size:,}", *_beside(some)])
        table.append([group, "all", "", *_beside(of_group)])
    head = ["drawn", "taste", "learned from", "quality", "prompts right", "diversity", "points", "forwards per step"]
    return markdown(head, table)


def _beside(rows: Sequence[Row]) -> list[str]:
    reached = [row.beside for row in rows if row.beside is not None]
    cells = []
    for name in MEASURES:
        if not reached:
            cells.append("")
            continue
        apart, error = mean_beside([beside[name] for beside in reached])
        cells.append(f"{apart:+.4f} ± {error:.4f}{'' if apart >= -error else ' below'}")
    return [*cells, f"{len(reached)} of {len(rows)}", f"{np.mean([row.setting.forwards for row in rows]):g}"]


def mean_beside(replicated: Sequence[np.ndarray]) -> tuple[float, float]:
    """The mean over points and its standard error; a replicate in which the rival misses a point leaves it out."""
    values = np.stack(replicated)
    known = np.isfinite(values)
    some = known.any(0)
    mean = np.where(known, values, 0).sum(0)[some] / known.sum(0)[some]
    return float(mean[0]), float(mean[1:].std())


def summary(rows: Sequence[Row]) -> str:
    """In words, for each way of drawing, whether the bars are reached."""
    lines = []
    for group in in_order(row.group for row in rows):
        some = [row for row in rows if row.group == group]
        off = np.abs([row.off for row in some])
        held = sum(row.is_within for row in some)
        words = [f"{held} of {len(some)} points are within the bar;"]
        words.append(f"{off.mean():.3f} off in the mean, {off.max():.3f} at most.")
        words += _by_chance([row for row in some if row.stated is not None])
        if alike := sum(row.weight is not None for row in some):
            words.append(f"{alike} of them are one weight for all in one pass, which is LoRA weight itself.")
        words += _beside_words([row.beside for row in some if row.beside is not None])
        lines.append(f"- {group}: {' '.join(words)}")
    return "\n".join(lines)


def _by_chance(rows: Sequence[Row]) -> list[str]:
    """Whether what is off is what the dial itself says it does not know."""
    if not rows:
        return []
    bars = np.array([row.bar for row in rows])
    measured = np.maximum([row.error for row in rows], 1e-9)
    both = np.hypot(measured, [row.stated or 0.0 for row in rows])
    errors = np.abs([row.off for row in rows]) / both
    one, two = np.mean(errors < 1), np.mean(errors < 2)
    perfect, as_stated = (np.mean(2 * stats.norm.cdf(bars / error) - 1) for error in (measured, both))
    return [
        f"By the measurement's own chance, a dial that knew everything would have {perfect:.0%} of them there, one "
        f"that is off by what it states itself {as_stated:.0%}.",
        f"In standard errors, the measurement's and those that the dial states together, {one:.0%} are off by less "
        f"than one and {two:.0%} by less than two (chance alone: 68% and 95%).",
    ]


def _beside_words(beside: Sequence[dict[str, np.ndarray]]) -> list[str]:
    """Whether a way of drawing is better than LoRA weight at an equal rate."""
    if not beside:
        return []
    words = []
    for name in MEASURES:
        apart, error = mean_beside([values[name] for values in beside])
        how = "better" if apart > error else "worse" if apart < -error else "equal"
        words.append(f"{'prompts right' if name == 'right' else name} {how} ({apart:+.4f} ± {error:.4f})")
    return [f"Beside LoRA weight at an equal rate: {', '.join(words)}."]


def likes_table(measured: Sequence[Kept]) -> str:
    """By size and taste: what strength 1 does in the adapter's own mode, means over seeds."""
    bases, table = Bases(measured), []
    adapters = [kept for kept in measured if kept.config is not None]
    for size, taste in dict.fromkeys((kept.cell.size, kept.cell.taste) for kept in adapters):
        some = [kept for kept in adapters if (kept.cell.size, kept.cell.taste) == (size, taste)]
        promised, liked, best, gains = [], [], [], []
        for kept in some:
            setting, point = strength_1(kept)
            promised.append(bases.promise(taste, setting).mean())
            liked.append(point["liked"].mean())
            best.append(max(rival["liked"].mean() for other, rival in kept.points if other.kind == "weight"))
            gains.append([point[name].mean() - kept.base[1.0][name].mean() for name in MEASURES])
        said = sum(says_nothing_was_learned(kept) for kept in some)
        rates = [bases.rate(taste), *(float(np.mean(values)) for values in (promised, liked, best))]
        line = [f"{size:,}", taste, *(f"{rate:.3f}" for rate in rates)]
        table.append([*line, *(f"{gain:+.3f}" for gain in np.mean(gains, 0)), f"{said} of {len(some)}"])
    head = ["learned from", "taste", "base", "promised", "liked", "best of LoRA weight"]
    return markdown([*head, "quality", "prompts right", "diversity", "nothing learned"], table)


def strength_1(kept: Kept) -> tuple[Setting, ByPrompt]:
    """The point of tilt 2, or of the end, in the adapter's own mode; an adapter of these trainings has tilt 2."""
    return next(
        (setting, point)
        for setting, point in kept.points
        if (setting.role, setting.guidance_scale, setting.asked) == ("own mode", 1, 2)
    )


def says_nothing_was_learned(kept: Kept) -> bool:
    """Whether the calibration found no weight that surely raises the share of liked pictures."""
    return kept.config is not None and kept.config.dial is not None and not kept.config.dial.own.rises


def unlearned(measured: Sequence[Kept]) -> str:
    """How many calibrations say that nothing was learned, and how far the best weight of their LoRAs goes."""
    said = [kept for kept in measured if says_nothing_was_learned(kept)]
    if not said:
        return "None of the calibrations says that nothing was learned."
    moved = [
        max(point["liked"].mean() for setting, point in kept.points if setting.kind == "weight")
        - kept.base[1.0]["liked"].mean()
        for kept in said
    ]
    ratings = sorted(Counter(kept.cell.size for kept in said).items())
    return (
        f"{len(said)} calibrations say that nothing was learned: "
        + ", ".join(f"{count} from {size:,} ratings" for size, count in ratings)
        + f".\nThe best weight of their LoRAs moves the share of liked pictures by {np.mean(moved):+.3f} in the mean "
        + f"and {max(moved):+.3f} at most,\nfrom the same noises."
    )


def page(measured: Sequence[Kept], tastes: Mapping[str, float]) -> str:
    """The page.

    Args:
        measured: all that is kept, at least one adapter.
        tastes: the words of the tastes in their order, with their rates in the first pool.
    """
    order = list(tastes)
    measured = sorted(measured, key=lambda kept: (kept.cell.size, order.index(kept.cell.taste), kept.cell.seed))
    rows = rows_of(measured)
    adapters = [kept for kept in measured if kept.config is not None]
    n, bases = measured[0].n, Bases(measured)
    days = sorted({kept.made for kept in measured})
    made = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    devices = "; ".join(sorted({kept.device for kept in measured}))
    by_seed = sorted(Counter(kept.cell.seed for kept in adapters).items())
    seeds = ", ".join(f"{count} with seed {seed}" for seed, count in by_seed)
    more = len(measured) - len(adapters)
    refused = f"\nFor {more} more the trainer refused the ratings, because hardly any was liked." if more else ""
    counts = sorted({bases.pictures(kept.cell.taste) for kept in adapters})
    of_base = " or ".join(f"{count:,}" for count in counts)
    rates = markdown(["taste", "base rate"], [[words, f"{rate:.3f}"] for words, rate in tastes.items()])
    return f"""# The dial's promise on tastes that nobody chose

Made by `tests/benchmarks/dial.py` on {made} ({devices}).
{len(adapters)} adapters of the shapes model were measured: {seeds}.{refused}
`tests/benchmarks/dial_points` keeps the points. They have n = {n} pictures where the adapter is drawn in its own mode,
{n // 2} in other modes and for LoRA weight, and {n // 4} before the calibration, which is measured with the first
seed. They are drawn on {MEASUREMENT} prompts that were neither trained nor calibrated on, with noises of their own and
14 steps. "own mode" is the one that the adapter's calibration chose.
Every adapter is calibrated with {PICTURES:,} pictures from noises of its own (`diffusion-nft calibrate` takes 2,400 by
default), on {DIAL} prompts that are the same for all. Between ways of drawing it chooses with `{WATCHED}` watched.

The tastes were drawn by a rule in `tests/benchmarks/tastes.py`. Their base rates are those of the first pool.

{rates}

{summary(rows)}

## What strength 1 does

Strength 1 is the tilt 2, or the end of what the adapter's calibration says it reaches, in its own mode. "base" is the
share of the base model's pictures that is liked, "promised" and "liked" are what strength 1 was to give and gave, and
"best of LoRA weight" is the largest share that any weight of the LoRA gave. Quality, prompts right and diversity are
those at strength 1 less the base model's. The last column counts the adapters of which the calibration says that
nothing was learned. All are means over seeds.

{likes_table(measured)}

{unlearned(measured)}

## Promise

The promise is p e^λ / (1 - p + p e^λ) for each prompt and then averaged (M11 in [theory.md](../theory.md)). p is shrunk
by a Beta distribution fitted to all prompts, from {of_base} pictures of the base model. Tilts are
{", ".join(f"{tilt:+g}" for tilt in TILTS)}, or the end of what the adapter's calibration says it reaches.
Each entry: the mean of |measured - promised|, the largest, and the share of the points within the bar beyond one
standard error. The bar is {WITHIN["own"]} in the adapter's own mode without classifier-free guidance and
{WITHIN["other"]} elsewhere.

{promise_table(rows)}

Measured less promised by tilt, mean and standard deviation over tastes, sizes and seeds:

{tilt_table(rows)}

## Beside LoRA weight at an equal rate

LoRA weight was drawn at {", ".join(f"{weight:g}" for weight in WEIGHTS)} with the same prompts and noises, and at the
weights of own modes that are one weight for all. Between two weights it is taken to be straight. Points that are LoRA
weight themselves are left out. Entries are ours less LoRA weight's, over tilts and seeds, with the standard
error of a bootstrap over prompts; "below" marks those that are worse by more than it. LoRA weight takes one forward per
step.

{rival_table(rows)}
"""
