"""Whether ratings that an adapter asks for teach more than ratings in order: `diffusion-nft rate --by`.

    python -m tests.benchmarks.active --work runs/active --seeds 0 1 --write

Of each taste, forty pictures of the base model are rated in order and an adapter is trained. Then sixty more are
rated: the next sixty, or those of the next 760 of which the adapter is least sure. Each hundred trains an adapter, and
the three are measured on prompts of their own, with the same noise. What is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from datetime import date
from pathlib import Path

import numpy as np
import torch

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import read_adapter
from nft_pipeline.files.picture_list import read_rows, update_rows
from nft_pipeline.training.data.pool import PoolError
from nft_pipeline.training.demo.measure import with_lora
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.devices.precision import choose_precision
from nft_pipeline.training.dial.useful import most_useful_first
from nft_pipeline.training.run.trainer import train

from .dial_cells import (
    Cell,
    base_point,
    draw,
    measured,
    seed_pools,
    settings_of,
    slug,
    workload,
    write_json,
    write_ratings,
)

PAGE = Path(__file__).parents[2] / "docs" / "measured" / "active.md"
FIRST, MORE, CHOICE = 40, 60, 800
ARMS = ("forty in order", "a hundred in order", "forty and the sixty asked for")
WEIGHT, TILT = 1.0, 2.0


def folder_of(taste: str, seed: int, arm: str, work: Path) -> Path:
    """Where a training and its points are kept."""
    return work / "active" / slug(taste) / f"seed{seed}" / slug(arm)


def rate(taste: str, seed: int, arm: str, work: Path) -> Path:
    """The folder of an arm's rated pictures."""
    ratings = folder_of(taste, seed, arm, work) / "ratings"
    if (ratings / "metadata.jsonl").is_file():
        return ratings
    pictures = np.load(seed_pools(seed, work) / "pictures.npy")[:CHOICE]
    if arm != ARMS[2]:
        write_ratings(pictures[: FIRST if arm == ARMS[0] else FIRST + MORE], taste, ratings)
        return ratings
    everything = folder_of(taste, seed, arm, work) / "choice"
    write_ratings(pictures, taste, everything)
    rows = {row["image"]: row for row in read_rows(everything)}
    first = sorted(rows)[:FIRST]
    guided = DiffusionNFTPipeline.from_pretrained("shapes")
    guided.load_nft_adapter(read_adapter(folder_of(taste, seed, ARMS[0], work) / "run" / "adapter"))
    rest = [name for name in sorted(rows) if name not in set(first)]
    asked = most_useful_first(guided, "default", everything, rest, {name: rows[name]["prompt"] for name in rest}, 64)
    chosen = [*first, *asked[:MORE]]
    ratings.mkdir(parents=True)
    for name in chosen:
        (everything / name).rename(ratings / name)
    update_rows(ratings, {name: {key: rows[name][key] for key in ("prompt", "liked")} for name in chosen})
    return ratings


def trained(taste: str, seed: int, arm: str, work: Path) -> Path | None:
    """The folder of an arm's adapter; None if its ratings cannot be trained on."""
    folder = folder_of(taste, seed, arm, work)
    refused = folder / "refused.json"
    if refused.is_file():
        return None
    try:
        train(settings_of(Cell(taste, FIRST, seed), rate(taste, seed, arm, work)), folder / "run", device="cpu")
    except PoolError as error:
        write_json(refused, str(error))
        return None
    return folder / "run" / "adapter"


def measure(taste: str, seed: int, arm: str, work: Path, n: int) -> dict[str, dict[str, list[float]]] | None:
    """The adapter's pictures by LoRA weight and by the odds law in two passes; None if there is no adapter."""
    path = folder_of(taste, seed, arm, work) / f"points{n}.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    adapter = trained(taste, seed, arm, work)
    if adapter is None:
        return None
    guided = DiffusionNFTPipeline.from_pretrained("shapes")
    guided.load_nft_adapter(read_adapter(adapter))
    load = workload(seed, n, 1.0, dict(guided.call_defaults))
    law = {"nft_strength": TILT / guided.nft_config.tilt, "nft_law": "odds", "nft_mode": "two_pass"}
    points = {"law": measured(load.pictures(guided, f"{arm}: odds law", **law), taste)}
    stock = DiffusionNFTPipeline.from_pretrained("shapes").unwrap()
    with with_lora(stock, adapter) as lora:
        stock.set_adapters(lora, WEIGHT)
        points["weight"] = measured(load.pictures(stock, f"{arm}: LoRA weight"), taste)
    write_json(path, points)
    return points


def likes(taste: str, seed: int, arm: str, work: Path) -> str:
    """How many of an arm's pictures are liked."""
    liked = [row["liked"] for row in read_rows(rate(taste, seed, arm, work))]
    return f"{sum(liked)} of {len(liked)}"


def rows_of(taste: str, seeds: list[int], work: Path, n: int) -> list[list[str]]:
    """The rows of a taste, the mean over the seeds; an arm that was refused once says so."""
    bases = [base_point(taste, seed, n, 1.0, work) for seed in seeds]
    rows = [[taste, "the base model", "", _mean(bases, "liked"), _mean(bases, "liked"), _mean(bases, "right")]]
    for arm in ARMS:
        points = [measure(taste, seed, arm, work, n) for seed in seeds]
        there = [point for point in points if point is not None]
        ratings = ", ".join(likes(taste, seed, arm, work) for seed in seeds)
        if len(there) < len(points):
            rows.append([taste, arm, ratings, *["refused"] * 3])
            continue
        law, weight = ([point[way] for point in there] for way in ("law", "weight"))
        rows.append([taste, arm, ratings, _mean(law, "liked"), _mean(weight, "liked"), _mean(law, "right")])
        print(" | ".join(rows[-1]), flush=True)
    return rows


def _mean(points: list[dict[str, list[float]]], what: str) -> str:
    values = np.array([point[what] for point in points], dtype=float)
    spread = f" ({', '.join(f'{value:.2f}' for value in values.mean(1))})" if len(values) > 1 else ""
    return f"{values.mean():.3f} ± {values.std() / np.sqrt(values.size):.3f}{spread}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/active"), help="folder (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of pools and trainings (default: 0)")
    parser.add_argument("--tastes", type=int, default=3, help="how many, from the rarest but one (default: 3)")
    parser.add_argument("--n", type=int, default=512, help="pictures of a point (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="keep the page in docs")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    work = args.work.resolve()
    rates = draw(work)
    tastes = sorted(rates, key=rates.__getitem__)[1 : 1 + args.tastes]
    table = [row for taste in tastes for row in rows_of(taste, args.seeds, work, args.n)]
    heads = [
        "taste",
        "ratings",
        "liked of them",
        f"tilt {TILT:g}, two passes",
        f"LoRA weight {WEIGHT:g}",
        "prompt right",
    ]
    text = TEXT.format(
        day=date.today().isoformat(),
        machine=platform.machine(),
        precision=choose_precision("auto", torch.device("cpu"))[1].partition(":")[0],
        torch=torch.__version__,
        seeds=", ".join(map(str, args.seeds)),
        n=args.n,
        first=FIRST,
        more=MORE,
        choice=CHOICE - FIRST,
        table=markdown(heads, table),
    )
    print("\n" + text)
    if args.write:
        PAGE.write_text(text, encoding="utf-8")
    return 0


TEXT = """# Ratings that an adapter asks for

Measured by `tests/benchmarks/active.py` on {day} ({machine} CPU, {precision}, torch {torch}; seeds {seeds} of
pictures and training; n = {n} pictures of held-out prompts for each number and seed, the same noise in each; errors
are standard errors over pictures, in brackets the seeds). {first} pictures of the shapes model are rated in order and
train an adapter. Then {more} more are rated: the next in order, or those of the next {choice} of which that adapter
is least sure, as `diffusion-nft rate --by` shows them. No dial is calibrated. "Prompt right" is under the odds law.

{table}
"""

if __name__ == "__main__":
    sys.exit(main())
