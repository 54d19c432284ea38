"""How far the dial is off its promise, by how many pictures calibrate it.

    python -m tests.benchmarks.dial_budget --work runs/dial            # five minutes of one core for each taste
    python -m tests.benchmarks.dial_budget --work runs/dial --write    # also docs/measured/dial_budget.md

For the adapters that tests/benchmarks/dial.py trains from 200 ratings with the first seed. Each is drawn once at many
LoRA weights on the prompts of the measurement, which gives its true curve to sampling noise. Then it is calibrated
again and again, with few pictures and with many, and the weights that each calibration takes for the usual tilts are
looked up on that curve. A calibration that does not take LoRA weight for its one pass is left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import AdapterConfig, read_adapter
from nft_pipeline.dial.measured import TiltMap
from nft_pipeline.dial.scale import weight_of
from nft_pipeline.training.demo.measure import with_lora
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.dial.measure_adapter import Judging, calibrate_adapter
from nft_pipeline.training.rewards.find import find_reward

from .dial import DOCS
from .dial_cells import APART, BATCH, REWARD, TILTS, Cell, draw, measured, train_cell, workload, write_json
from .dial_numbers import by_prompt, mean_and_error, promised_by_prompt
from .dial_points import POINTS, kept_tastes
from .dial_report import WITHIN
from .tastes import MEASUREMENT, dial_prompts

SIZE, N = 200, 1024
LEARNED = (0, 1, 2, 4)  # the places of the tastes of which 200 ratings teach something; else all tilts end near 0
PICTURES = {600: 4, 1200: 3, 2400: 2, 4800: 1, 9600: 1}  # and how many calibrations have so many
WEIGHTS = (-0.6, -0.4, -0.25, -0.12, 0.0, 0.06, 0.12, 0.2, 0.3, 0.45, 0.65, 1.0, 1.4)
FIRST = 10  # of the calibrations' seeds, times APART; dial.py has those before


@dataclass(frozen=True)
class Off:
    """One tilt of one calibration.

    Args:
        pictures: of the calibration.
        off: what the tilt's weight gives, less what is promised, with the standard error of the measurement.
        stated: the standard error that the dial states.
    """

    pictures: int
    off: float
    error: float
    stated: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/dial"), help="folder of dial.py")
    parser.add_argument(
        "--tastes", type=int, nargs="+", default=LEARNED, help="places of tastes (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=0, help="threads (default: all cores)")
    parser.add_argument("--write", action="store_true", help="write the page")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    tastes = list(kept_tastes(POINTS) or draw(args.work))
    offs = [off for place in args.tastes for off in offs_of(Cell(tastes[place], SIZE, 0), args.work)]
    text = page(offs, len(args.tastes))
    print(text)
    if args.write:
        (DOCS / "measured" / "dial_budget.md").write_text(text, encoding="utf-8")


def offs_of(cell: Cell, work: Path) -> list[Off]:
    """Every tilt of every calibration of a cell's adapter."""
    if not (cell.folder(work) / "trained.json").is_file():
        train_cell(cell, work)
    curve = true_curve(cell, work)
    return [off for place in range(sum(PICTURES.values())) for off in offs_on(curve, *calibrated(cell, place, work))]


def true_curve(cell: Cell, work: Path) -> np.ndarray:
    """The share of liked pictures by weight and prompt, (weights, P)."""
    path = cell.folder(work) / "budget" / "curve.json"
    if not path.is_file():
        stock, rates = DiffusionNFTPipeline.from_pretrained("shapes"), []
        load = workload(cell.seed, N, 1.0, dict(stock.call_defaults))
        pipe = stock.unwrap()
        with with_lora(pipe, cell.folder(work) / "run" / "adapter") as lora:
            for weight in WEIGHTS:
                pipe.set_adapters(lora, weight)
                point = by_prompt(measured(load.pictures(pipe, f"weight {weight:+g}"), cell.taste), MEASUREMENT)
                rates.append(point["liked"].tolist())
        write_json(path, rates)
    return np.array(json.loads(path.read_text()))


def calibrated(cell: Cell, place: int, work: Path) -> tuple[int, TiltMap | None]:
    """How many pictures a calibration has, by its place among all, and the map of one pass that it finds, if that is
    one of LoRA weight."""
    pictures = [count for count, times in PICTURES.items() for _ in range(times)][place]
    path = cell.folder(work) / "budget" / f"{place}_{pictures}.json"
    if not path.is_file():
        guided = DiffusionNFTPipeline.from_pretrained("shapes")
        guided.load_nft_adapter(read_adapter(cell.folder(work) / "run" / "adapter"), name="taste")
        judging = Judging({"taste": find_reward(REWARD, words=cell.taste)}, {})
        adapter, _ = calibrate_adapter(
            guided, "taste", dial_prompts(), judging, pictures=pictures, seed=APART * (FIRST + place), batch=BATCH
        )
        write_json(path, adapter.config.to_dict())
    config = AdapterConfig.from_json(path.read_bytes(), str(path))
    found = None if config.dial is None else config.dial.map_for("single")
    return pictures, None if found is None or found.slope > 0 else found


def offs_on(curve: np.ndarray, pictures: int, tilt_map: TiltMap | None) -> list[Off]:
    """The usual tilts of a map on the true curve; none without a map."""
    if tilt_map is None:
        return []
    base, found = curve[WEIGHTS.index(0.0)], []
    for tilt in TILTS:
        asked = min(max(tilt, tilt_map.lowest), tilt_map.highest)
        weight = float(weight_of(tilt_map, torch.tensor(asked, dtype=torch.float64)))
        liked = np.array([np.interp(weight, WEIGHTS, rates) for rates in curve.T])
        off, error = mean_and_error(liked - promised_by_prompt(base, N // MEASUREMENT, asked))
        found.append(Off(pictures, off, error, float(np.interp(asked, tilt_map.tilts, tilt_map.errors))))
    return found


def page(offs: Sequence[Off], adapters: int) -> str:
    """The page."""
    table = []
    for pictures in PICTURES:
        some = [off for off in offs if off.pictures == pictures]
        if not some:
            continue
        sizes = np.abs([off.off for off in some])
        stated = np.array([off.stated for off in some])
        within = np.mean([abs(off.off) <= WITHIN["own"] + off.error for off in some])
        values = [sizes.mean(), _root(sizes), _root(stated), sizes.max()]
        line = [f"{pictures:,}", f"{len(some) // len(TILTS)}", *(f"{value:.3f}" for value in values), f"{within:.0%}"]
        table.append(line)
    head = ["pictures", "calibrations", "off in the mean", "root of the mean square", "the dial's own error", "at most"]
    measured = _root(np.array([off.error for off in offs]))
    tilts = ", ".join(f"{tilt:+g}" for tilt in TILTS)
    return f"""# How many pictures a calibration needs

Made by `tests/benchmarks/dial_budget.py` on {date.today().isoformat()}, on a CPU.
{adapters} adapters of the shapes model, which learned something from {SIZE} ratings each ([dial.md](dial.md)), are
calibrated with more and with fewer pictures; `diffusion-nft calibrate` takes 2,400 by default. What each calibration
takes for the tilts {tilts} is looked up on the adapter's true curve: {len(WEIGHTS)} LoRA weights,
n = {N} pictures each, on prompts and noises of their own. A calibration that found a better way of one pass than LoRA
weight is left out. The last column counts the tilts at which the share of liked pictures is within {WITHIN["own"]} of
the promise, beyond one standard error of the measurement. That error is {measured:.3f},
so a calibration that knew everything would be off by as much.

{markdown([*head, "within the bar"], table)}
"""


def _root(values: np.ndarray) -> float:
    """The root of the mean square."""
    return float(np.sqrt(np.mean(values**2)))


if __name__ == "__main__":
    main()
