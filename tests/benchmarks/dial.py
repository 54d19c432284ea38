"""The dial's promise held against six tastes that nobody chose, and the dial beside LoRA weight at an equal rate.

    python -m tests.benchmarks.dial --work runs/dial --write            # what is not kept yet: hours of one core
    python -m tests.benchmarks.dial --work runs/dial --sizes 40         # a part of it, whole; others may run beside it
    python -m tests.benchmarks.dial --work runs/dial --only keep report --write     # keep what others measured there
    python -m tests.benchmarks.dial --quick                             # two tastes, two sizes, one seed, few pictures

Each taste (tests/benchmarks/tastes.py) is learned from 40, 100 and 200 ratings and from a pool of 4,096, with three
seeds. Every finished part lies in --work (tests/benchmarks/dial_cells.py says where), so a run that was stopped goes
on, and several may share the work. To train again, delete `run` and trained.json of a cell. --write keeps what was
measured in the repository (tests/benchmarks/dial_points.py) and makes the page dial.md of docs/measured from all that
is kept. What is kept already is not done again, on whatever machine; to measure it anew, delete its file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nft_pipeline.adapter import read_adapter

from .dial_cells import (
    CFG,
    POOL_SIZE,
    Cell,
    Setting,
    adapter_of,
    calibrate_cell,
    claimed,
    draw,
    measure_cell,
    settings_after,
    settings_before,
    settings_of_weight,
    train_cell,
)
from .dial_points import POINTS, keep_cell, keep_tastes, kept_path, kept_tastes, read_kept
from .dial_report import page
from .tastes import MEASUREMENT

DOCS = Path(__file__).parents[2] / "docs"
PARTS = ("train", "calibrate", "measure", "keep", "report")
SIZES = (40, 100, 200, POOL_SIZE)
SEEDS = (0, 1, 2)
WITH_CFG = (2, 4)  # the places of the tastes that are measured under classifier-free guidance, too, with the first seed


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Args:
        work: the folder of everything that is made on the way.
        points: the folder where points are kept.
        tastes: words with the rates in the first pool, in the order drawn.
        cfg_tastes: those measured under classifier-free guidance, too, in the cells of the first seed.
        cells: in the order in which they are worked on.
        n: pictures of a point in the adapter's own mode; other modes and LoRA weight have half as many, and points from
            before the calibration, which are of the first seed, a quarter.
    """

    work: Path
    points: Path
    tastes: dict[str, float]
    cfg_tastes: tuple[str, ...]
    cells: tuple[Cell, ...]
    n: int

    def is_under_cfg(self, cell: Cell) -> bool:
        """Whether a cell is measured under classifier-free guidance, too."""
        return cell.taste in self.cfg_tastes and cell.seed == SEEDS[0]

    def settings(self, cell: Cell) -> list[Setting]:
        """What is measured of a cell's adapter."""
        config = read_adapter(adapter_of(cell, self.work)).config
        chosen = settings_before(self.n // 4, config.tilt, 1.0) if cell.seed == SEEDS[0] else []
        chosen += settings_of_weight(self.n // 2) + settings_after(config, self.n, self.n // 2, 1.0)
        if self.is_under_cfg(cell):
            chosen += settings_before(self.n // 4, config.tilt, CFG)
            chosen += settings_after(config, self.n // 2, self.n // 2, CFG)
        return chosen


def work_on(plan: Plan, parts: Sequence[str]) -> None:
    """Train, calibrate and measure what was not yet and what no other process is at."""
    for cell in plan.cells if {"train", "calibrate", "measure"} & set(parts) else ():
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


def keep(plan: Plan) -> None:
    """Keep the points of all cells that are whole."""
    keep_tastes(plan.tastes, plan.points)
    for cell in plan.cells:
        folder = cell.folder(plan.work)
        if not (folder / "trained.json").is_file():
            continue
        settings = plan.settings(cell) if is_trained(folder) else []
        is_kept = keep_cell(cell, settings, plan.n, plan.work, plan.points)
        print(f"{cell.taste}, {cell.size}, seed {cell.seed}: {'kept' if is_kept else 'not all of it is measured'}")


def plan_of(args: argparse.Namespace) -> Plan:
    """The whole plan, or the part that the arguments choose."""
    points = POINTS if args.write else args.work / "points"
    tastes = kept_tastes(POINTS) or draw(args.work)
    words = list(tastes)
    chosen = [words[place] for place in (WITH_CFG if args.quick else args.tastes)]
    sizes = (40, POOL_SIZE) if args.quick else args.sizes
    seeds = (0,) if args.quick else args.seeds
    cells = [Cell(taste, size, seed) for seed in seeds for size in sizes for taste in chosen]
    if args.write:
        cells = [cell for cell in cells if not kept_path(cell, points).is_file()]
    cfg = () if args.quick else tuple(words[place] for place in WITH_CFG)
    return Plan(args.work, points, tastes, cfg, tuple(cells), 256 if args.quick else args.n)


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
    parser.add_argument("--write", action="store_true", help="keep the points in the repository, write the page")
    args = parser.parse_args()
    if args.n % (2 * MEASUREMENT) or args.n < 4 * MEASUREMENT:
        parser.error(
            f"--n is {args.n}, expected a multiple of {2 * MEASUREMENT} from {4 * MEASUREMENT} on: as many pictures "
            "for each prompt, and at least two where there are half as many"
        )
    if args.write and (args.quick or args.n != parser.get_default("n")):
        parser.error(f"--write is for the points of the page, which have {parser.get_default('n')} pictures each")
    if args.threads:
        torch.set_num_threads(args.threads)
    plan = plan_of(args)
    work_on(plan, args.only)
    if "keep" in args.only:
        keep(plan)
    if "report" in args.only:
        measured = [read_kept(path) for path in sorted(plan.points.glob("*/*.safetensors"))]
        if not measured:
            parser.exit(1, f"no points are kept in {plan.points} yet: there is nothing to report\n")
        text = page(measured, plan.tastes)
        print(text)
        if args.write:
            (DOCS / "measured" / "dial.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
