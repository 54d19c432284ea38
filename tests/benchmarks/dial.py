"""The dial's promise held against six tastes that nobody chose, and the dial beside LoRA weight at an equal rate.

    python -m tests.benchmarks.dial --work runs/dial                    # everything, about eight hours of one core
    python -m tests.benchmarks.dial --work runs/dial --only train       # a part of it; others may run beside it
    python -m tests.benchmarks.dial --work runs/dial --only report --write
    python -m tests.benchmarks.dial --quick                             # two tastes, two sizes, one seed, few pictures

Each taste (tests/benchmarks/tastes.py) is learned from 40, 100 and 200 ratings and from a pool of 4,096, with three
seeds. Every finished part is kept in --work (tests/benchmarks/dial_cells.py says where), so a run that was stopped goes
on, and several may share the work. To train again, delete `run` and trained.json of a cell. --write makes
the page dial.md of docs/measured.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch

from nft_pipeline.adapter import AdapterConfig, read_adapter
from nft_pipeline.dial.scale import weight_of
from nft_pipeline.modes import MODES
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.devices.precision import choose_precision

from .dial_cells import (
    CFG,
    POOL_SIZE,
    TILTS,
    WEIGHTS,
    Cell,
    Setting,
    adapter_of,
    base_point,
    calibrate_cell,
    claimed,
    digest_of,
    draw,
    measure_cell,
    read_point,
    settings_after,
    settings_before,
    settings_of_weight,
    train_cell,
)
from .dial_numbers import MEASURES, beside_rival, by_prompt, mean_and_error, promised_by_prompt, replicates
from .tastes import MEASUREMENT

DOCS = Path(__file__).parents[2] / "docs"
PARTS = ("train", "calibrate", "measure", "report")
SIZES = (40, 200, POOL_SIZE, 100)
SEEDS = (0, 1, 2)
WITH_CFG = (2, 4)  # the places of the tastes that are measured under classifier-free guidance, too, with the first seed
WITHIN = {"own": 0.03, "other": 0.05}


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Args:
        work: the folder of everything.
        tastes: words with the rates in the first pool, in the order drawn.
        cfg_tastes: those measured under classifier-free guidance, too, in the cells of the first seed.
        cells: in the order in which they are worked on.
        n: pictures of a point in the adapter's own mode; other modes and LoRA weight have half as many, and points from
            before the calibration a quarter.
    """

    work: Path
    tastes: dict[str, float]
    cfg_tastes: tuple[str, ...]
    cells: tuple[Cell, ...]
    n: int

    @property
    def seeds(self) -> list[int]:
        """The seeds of the cells."""
        return sorted({cell.seed for cell in self.cells})

    def is_under_cfg(self, cell: Cell) -> bool:
        """Whether a cell is measured under classifier-free guidance, too."""
        return cell.taste in self.cfg_tastes and cell.seed == SEEDS[0]

    def settings(self, cell: Cell) -> list[Setting]:
        """What is measured of a cell's adapter."""
        config = read_adapter(adapter_of(cell, self.work)).config
        chosen = settings_before(self.n // 4, config.tilt, 1.0) + settings_of_weight(self.n // 2)
        chosen += settings_after(config, self.n, self.n // 2, 1.0)
        if self.is_under_cfg(cell):
            chosen += settings_before(self.n // 4, config.tilt, CFG)
            chosen += settings_after(config, self.n // 2, self.n // 2, CFG)
        return chosen


def work_on(plan: Plan, parts: Sequence[str]) -> None:
    """Train, calibrate and measure what was not yet and what no other process is at."""
    for cell in plan.cells if set(parts) - {"report"} else ():
        folder = cell.folder(plan.work)
        with claimed(folder / "claimed") as mine:
            if not mine:
                continue
            print(f"{cell.taste}, {cell.size}, seed {cell.seed}", flush=True)
            if "train" in parts and not (folder / "trained.json").is_file():
                train_cell(cell, plan.work)
            if "calibrate" in parts and is_trained(folder):
                calibrate_cell(cell, plan.work, (1.0, CFG) if plan.is_under_cfg(cell) else (1.0,))
            if "measure" in parts and is_trained(folder):
                measure_cell(cell, plan.settings(cell), plan.work)


def is_trained(folder: Path) -> bool:
    """Whether a cell has an adapter; the trainer refuses ratings of which none is liked."""
    path = folder / "trained.json"
    return path.is_file() and "refused" not in json.loads(path.read_text())


@dataclass(frozen=True)
class Row:
    """One point beside its promise and beside LoRA weight.

    Args:
        off: measured rate less promised, with its standard error.
        weight: the LoRA weight that the point was drawn with, if it is one; nothing is then to be compared.
        beside: our measures less LoRA weight's at our rate, for each replicate of the bootstrap; None where LoRA weight
            does not reach the rate or was not measured.
    """

    cell: Cell
    setting: Setting
    off: float
    error: float
    weight: float | None
    beside: dict[str, np.ndarray] | None

    @property
    def group(self) -> str:
        """ "before" or "after", the mode, and the guidance scale if there is one: rows of a group are comparable."""
        cfg = f", CFG {self.setting.guidance_scale:g}" if self.setting.guidance_scale > 1 else ""
        role = f", {self.setting.role}" if self.setting.role else ""
        return f"{self.setting.kind}, {self.setting.mode}{role}{cfg}"

    @property
    def is_within(self) -> bool:
        """Whether it is as near the promise as it is held to be, beyond one standard error."""
        within = WITHIN["own" if self.setting.role == "own mode" and self.setting.guidance_scale == 1 else "other"]
        return abs(self.off) <= within + self.error


def rows_of(plan: Plan) -> list[Row]:
    """All points that were measured."""
    weights, rows = replicates(MEASUREMENT), []
    for cell in plan.cells:
        folder = cell.folder(plan.work)
        if not is_trained(folder):
            continue
        adapter = adapter_of(cell, plan.work)
        config = read_adapter(adapter).config
        measured = [
            (setting, by_prompt(point, MEASUREMENT))
            for setting in plan.settings(cell)
            if (point := read_point(folder, setting, digest_of(adapter, setting.kind))) is not None
        ]
        rivals = [(0.0, by_prompt(base_point(cell.taste, cell.seed, plan.n, 1.0, plan.work), MEASUREMENT))]
        rivals += [
            (weight, point)
            for setting, point in measured
            if setting.guidance_scale == 1 and (weight := lora_weight(config, setting)) is not None
        ]
        rivals.sort(key=lambda pair: pair[0])
        is_whole = sum(setting.kind == "weight" for setting, _ in measured) == len(WEIGHTS)
        for setting, ours in measured:
            if setting.kind == "weight":
                continue
            off, error = mean_and_error(ours["liked"] - promise(plan, cell.taste, setting))
            weight = lora_weight(config, setting)
            comparable = is_whole and setting.guidance_scale == 1 and weight is None
            beside = beside_rival(ours, [rival for _, rival in rivals], weights) if comparable else None
            rows.append(Row(cell, setting, off, error, weight, beside))
    return rows


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


def promise(plan: Plan, taste: str, setting: Setting) -> np.ndarray:
    """What is promised for each prompt, (P,), from the base model's pictures of all seeds."""
    points = [base_point(taste, seed, plan.n, setting.guidance_scale, plan.work) for seed in plan.seeds]
    liked = np.mean([by_prompt(point, MEASUREMENT)["liked"] for point in points], 0)
    return promised_by_prompt(liked, len(points) * plan.n // MEASUREMENT, setting.value)


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
    mean = np.nanmean(np.stack(replicated), 0)
    return float(mean[0]), float(np.nanstd(mean[1:]))


def summary(rows: Sequence[Row]) -> str:
    """In words, for each way of drawing, whether the bars are reached."""
    lines = []
    for group in in_order(row.group for row in rows):
        some = [row for row in rows if row.group == group]
        off = np.abs([row.off for row in some])
        held = sum(row.is_within for row in some)
        line = f"- {group}: {held} of {len(some)} points are within the bar; {off.mean():.3f} off in the mean, "
        line += f"{off.max():.3f} at most."
        reached = [row.beside for row in some if row.beside is not None]
        if alike := sum(row.weight is not None for row in some):
            line += f" {alike} of them are one weight for all in one pass, which is LoRA weight itself."
        if reached:
            words = []
            for name in MEASURES:
                apart, error = mean_beside([beside[name] for beside in reached])
                how = "better" if apart > error else "worse" if apart < -error else "equal"
                words.append(f"{'prompts right' if name == 'right' else name} {how} ({apart:+.4f} ± {error:.4f})")
            line += f" Beside LoRA weight at an equal rate: {', '.join(words)}."
        lines.append(line)
    return "\n".join(lines)


def report(plan: Plan) -> str:
    """The page."""
    rows = rows_of(plan)
    if not rows:
        return "nothing was measured yet"
    _, precision = choose_precision("auto", torch.device("cpu"))
    device = f"{platform.machine()} CPU, {precision.partition(':')[0]}, torch {torch.__version__}"
    measured_cells = {row.cell for row in rows}
    refused = sum(
        (cell.folder(plan.work) / "trained.json").is_file() and not is_trained(cell.folder(plan.work))
        for cell in plan.cells
    )
    tastes = markdown(["taste", "base rate"], [[words, f"{rate:.3f}"] for words, rate in plan.tastes.items()])
    return f"""# The dial's promise on tastes that nobody chose

Made by `tests/benchmarks/dial.py` on {date.today().isoformat()} ({device}).
{len(measured_cells)} adapters of the shapes model were measured. For {refused} more the trainer refused the ratings,
because hardly any was liked. Points have n = {plan.n} pictures where the adapter is drawn in its own mode,
{plan.n // 2} in other modes and for LoRA weight, and {plan.n // 4} before the calibration. They are drawn on
{MEASUREMENT} prompts that were neither trained nor calibrated on, with noises of their own and 14 steps. "own mode" is
the one that the adapter's calibration chose.

The tastes were drawn by a rule in `tests/benchmarks/tastes.py`. Their base rates are those of the first pool.

{tastes}

{summary(rows)}

## Promise

The promise is p e^λ / (1 - p + p e^λ) for each prompt and then averaged (M11 in [theory.md](../theory.md)). p is shrunk
by a Beta distribution fitted to all prompts, from {len(plan.seeds) * plan.n} pictures of the base model. Tilts are
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


def plan_of(args: argparse.Namespace) -> Plan:
    """The whole plan, or the part that the arguments choose."""
    tastes = draw(args.work)
    words = list(tastes)
    chosen = [words[place] for place in (WITH_CFG if args.quick else args.tastes)]
    sizes = (40, POOL_SIZE) if args.quick else args.sizes
    seeds = (0,) if args.quick else args.seeds
    cells = tuple(Cell(taste, size, seed) for seed in seeds for size in sizes for taste in chosen)
    cfg = () if args.quick else tuple(words[place] for place in WITH_CFG)
    return Plan(args.work, tastes, cfg, cells, 256 if args.quick else args.n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/dial"), help="folder for all that is made")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="do these parts (default: all)")
    parser.add_argument("--tastes", type=int, nargs="+", default=range(6), help="places of tastes (default: 0 to 5)")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="ratings; 4096 is the pool")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="training seeds (default: 0 1 2)")
    parser.add_argument(
        "--n", type=int, default=1024, help=f"pictures a point, a multiple of {2 * MEASUREMENT} (default: 1024)"
    )
    parser.add_argument("--threads", type=int, default=0, help="threads of this process (default: all cores)")
    parser.add_argument("--quick", action="store_true", help="two tastes, two sizes, one seed, 256 pictures")
    parser.add_argument("--write", action="store_true", help="write the page")
    args = parser.parse_args()
    if args.n % (2 * MEASUREMENT) or args.n < 4 * MEASUREMENT:
        parser.error(
            f"--n is {args.n}, expected a multiple of {2 * MEASUREMENT} from {4 * MEASUREMENT} on: as many pictures "
            "for each prompt, and at least two where there are half as many"
        )
    if args.threads:
        torch.set_num_threads(args.threads)
    plan = plan_of(args)
    work_on(plan, args.only)
    if "report" in args.only:
        text = report(plan)
        print(text)
        if args.write:
            (DOCS / "measured" / "dial.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
