"""How far v_plus gets: the share of liked pictures with the demo's LoRA fully on, by how evenly states are weighed.

    python -m tests.benchmarks.fully_on --work runs/fully_on --write    # about five minutes of one core per training

v_plus is fitted at noisy states of all pictures, which count alike where alpha is above a border and in proportion to
alpha below it (`BORDER` in training/learn/posterior.py). The lower the border, the more count the states from which a
liked picture is unlikely. Every training keeps its adapter and what was measured of it in --work, so that a stopped run
goes on. All trainings of a seed learn from one pool. --write makes fully_on.md of docs/measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import torch

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.training.demo.measure import Workload, with_lora
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.devices.precision import choose_precision
from nft_pipeline.training.learn import posterior
from nft_pipeline.training.rewards.find import find_prompts, find_reward
from nft_pipeline.training.run.trainer import train
from nft_pipeline.training.settings.config import TrainConfig

BORDERS = (0.05, 0.005, 0.001)
SEEDS = (0, 1)
WEIGHTS = (0.5, 1.0, 1.5)
NOISE_SEED = 555_000_000  # of the measurement, the same for all trainings
N = 2070  # pictures a point, as many of each prompt
REWARD, WATCHED = "shapes_warm", "shapes_eval"
POOLS = ("pool.safetensors", "held_out.safetensors")
DOCS = Path(__file__).parents[2] / "docs"

Point = dict[str, float]


def adapter_of(border: float, seed: int, work: Path) -> Path:
    """The adapter of a border and a seed: trained if that was not done yet."""
    run, pool = work / f"border{border:g}_seed{seed}", work / f"pool_seed{seed}"
    if not (run / "adapter").is_dir():
        run.mkdir(parents=True, exist_ok=True)
        for name in POOLS if pool.is_dir() else ():
            shutil.copy(pool / name, run / name)
        unmeasured = {"samples_every": 0, "sweep_size": 0, "calibration_pictures": 0, "watch_reward": ""}
        kept = posterior.BORDER
        try:
            posterior.BORDER = border
            train(TrainConfig.from_yaml("shapes_warm", {"seed": seed, **unmeasured}), run)
        finally:
            posterior.BORDER = kept
        pool.mkdir(exist_ok=True)
        for name in POOLS:
            shutil.copy(run / name, pool / name)
    return run / "adapter"


def points_of(border: float, seed: int, work: Path) -> list[Point]:
    """The share of liked pictures and the mean of the watched reward at each LoRA weight."""
    path = work / f"border{border:g}_seed{seed}.json"
    if not path.is_file():
        prompts, guided = find_prompts("shapes_warm_held_out"), DiffusionNFTPipeline.from_pretrained("shapes")
        dtype, _ = choose_precision("auto", torch.device("cpu"))
        load = Workload(prompts, n=N, seed=NOISE_SEED, batch=207, call=dict(guided.call_defaults), dtype=dtype)
        stock, points = guided.unwrap(), list[Point]()
        with with_lora(stock, adapter_of(border, seed, work)) as lora:
            for weight in WEIGHTS:
                stock.set_adapters(lora, weight)
                pictures = load.pictures(stock, f"weight {weight:g}")
                liked, watched = (np.mean(find_reward(name)(pictures, load.texts())) for name in (REWARD, WATCHED))
                points.append({"weight": weight, "liked": float(liked), "watched": float(watched)})
        path.write_text(json.dumps(points))
    return list(json.loads(path.read_text()))


def page(measured: dict[tuple[float, int], list[Point]]) -> str:
    """The page, of points by border and seed."""
    rows = []
    for (border, seed), points in measured.items():
        cells = [f"{point['liked']:.4f} ± {_error(point['liked']):.4f}" for point in points]
        rows.append([f"{border:g}", str(seed), *cells, *(f"{point['watched']:.3f}" for point in points)])
    liked, watched = ([f"{what}, weight {weight:g}" for weight in WEIGHTS] for what in ("liked", WATCHED))
    _, precision = choose_precision("auto", torch.device("cpu"))
    device = f"{platform.machine()} CPU, {precision.partition(':')[0]}, torch {torch.__version__}"
    return f"""# How far v_plus gets

Made by `tests/benchmarks/fully_on.py` on {date.today().isoformat()} ({device}).
Each row is a training of the preset shapes_warm, in which v_plus was fitted at states of all pictures of the pool:
those with alpha above a border count alike, those below it in proportion to alpha. Trainings of one seed learned from
one pool, which has 91 pictures of each prompt. n = {N:,} pictures a point, on held-out prompts and one and the same
noise, 14 steps, without classifier-free guidance. "liked" is the share with everything drawn red or orange, with its
standard error; `{WATCHED}` is the reward that the preset watches and does not train on. Where a prompt has as many
liked pictures as here, training takes {posterior.BORDER:g}.

{markdown(["border", "seed", *liked, *watched], rows)}
"""


def _error(rate: float) -> float:
    return (rate * (1 - rate) / N) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/fully_on"), help="folder for all that is made")
    parser.add_argument("--borders", type=float, nargs="+", default=BORDERS, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="threads (default: all cores)")
    parser.add_argument("--write", action="store_true", help="write the page")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    text = page({(border, seed): points_of(border, seed, args.work) for border in args.borders for seed in args.seeds})
    print(text)
    if args.write:
        (DOCS / "measured" / "fully_on.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
