"""Reward against samples seen: the same model, pool, noise and budget, one objective a curve.

    python tests/benchmarks/objectives.py --work runs/objectives        # three seeds, a quarter of an hour each

All four aim at the same model, v_old + tilt Cov(r, y), at strength 1: `positive` by v_plus and its head in two passes,
the others by their LoRA alone. Every training seed has a pool of its own; what was measured is kept in --work, so a run
that was stopped goes on where it was. Writes docs/measured/objectives.md and docs/pictures/objectives.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nft_pipeline.adapter import BaseModel, fingerprint
from nft_pipeline.training.config import TrainConfig
from nft_pipeline.training.learner import Learner
from nft_pipeline.training.live import Live
from nft_pipeline.training.precision import choose_precision
from nft_pipeline.training.reward import find_prompts, find_reward
from nft_pipeline.training.shapes.measure import measure_pictures
from nft_pipeline.training.shapes.report import markdown
from nft_pipeline.training.sources import offline_pools
from nft_pipeline.training.sweep import sweep_rows
from nft_pipeline.training.trainer import load_base

OBJECTIVES: dict[str, dict[str, Any]] = {
    "paper": {"objective": "paper"},
    "policy, half": {"objective": "policy", "baseline": "half"},
    "policy, alpha": {"objective": "policy", "baseline": "alpha"},
    "positive": {"objective": "positive"},
}
STEPS = (32, 64, 96, 128, 192, 256)  # at which the average so far is drawn
PRESET, REWARD = "shapes_warm", "shapes_warm"
DOCS = Path(__file__).parents[2] / "docs"


def settings_of(name: str, seed: int) -> TrainConfig:
    """One objective's run. The head's batch is the LoRA's, so that all see equally many samples a step."""
    same = {"seed": seed, "steps": STEPS[-1], "optimality": "raw"}
    config = TrainConfig.from_yaml(PRESET, {**same, **OBJECTIVES[name]})
    return TrainConfig.from_yaml(PRESET, {**same, **OBJECTIVES[name], "head_batch": config.batch})


def one_curve(name: str, seed: int, n: int, work: Path) -> list[list[float]]:
    """[samples seen, P(o=1), quality] after each of STEPS, step 0 first; from `work` if it was measured before."""
    done = work / f"seed{seed}" / f"{name.replace(', ', '_')}_{n}.json"
    if done.is_file():
        return json.loads(done.read_text())
    done.parent.mkdir(parents=True, exist_ok=True)
    config, reward = settings_of(name, seed), find_reward(REWARD)
    base, _ = load_base(config)
    pool, _ = offline_pools(base, config, done.parent, say=print)
    texts = find_prompts("shapes_warm_held_out")
    rows = sweep_rows(len(texts), n)
    live = Live(base, BaseModel(config.base_model, None, fingerprint(base.denoiser)), texts, config.pool_batch)
    learner, curve = Learner(base, pool.conditions, config), []

    def measure(strength: float) -> None:
        with live.of(learner) as draw:
            pictures = draw(rows, strength, name)
        found = measure_pictures(pictures, [texts[prompt] for prompt, _ in rows], reward)
        curve.append([float(learner.step_number * config.batch), *found])

    measure(0.0)
    for step in tqdm(range(1, STEPS[-1] + 1), desc=f"{name}, seed {seed}"):
        learner.step(pool)
        if step in STEPS:
            measure(1.0)
    learner.remove()
    done.write_text(json.dumps(curve))
    return curve


def samples_to(curve: list[list[float]], rate: float) -> float | None:
    """Samples after which the curve first reaches a rate, straight lines between what was measured."""
    for (n0, r0, _), (n1, r1, _) in itertools.pairwise(curve):
        if r1 >= rate:
            return n0 if r0 >= rate else n0 + (n1 - n0) * (rate - r0) / (r1 - r0)
    return None


def spread(values: list[float], form: str = ".3f") -> str:
    """Mean, lowest and highest."""
    return f"{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def reached(curves: list[list[list[float]]], rate: float) -> str:
    """Samples to a rate, where every seed gets there."""
    found = [samples_to(curve, rate) for curve in curves]
    got = [samples for samples in found if samples is not None]
    if len(got) < len(found):
        return f"in {len(got)} of {len(found)}"
    return spread(got, ",.0f")


def plot(runs: dict[str, list[list[list[float]]]], path: Path, title: str) -> None:
    """The mean curve of each objective, its seeds as a band."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    for (name, curves), colour in zip(runs.items(), ("#7a7a80", "#d1653c", "#2f6fde", "#3a9a5b"), strict=True):
        samples, rates = [row[0] for row in curves[0]], np.array([[row[1] for row in curve] for curve in curves])
        axes.plot(samples, rates.mean(0), label=name, color=colour, marker="o", markersize=4)
        axes.fill_between(samples, rates.min(0), rates.max(0), color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="samples seen", ylabel="P(o=1), held-out prompts", title=title)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(runs: dict[str, list[list[list[float]]]], seeds: list[int], n: int) -> str:
    """docs/measured/objectives.md."""
    config, some = settings_of("paper", 0), next(iter(runs.values()))
    titles = ["objective", *(f"{row[0]:,.0f}" for row in some[0][1:])]
    rates = [
        [name, *(spread([curve[i][1] for curve in curves]) for i in range(1, len(curves[0])))]
        for name, curves in runs.items()
    ]
    quality = [
        [name, *(f"{np.mean([curve[i][2] for curve in curves]):.3f}" for i in range(1, len(curves[0])))]
        for name, curves in runs.items()
    ]
    base = [curve[0] for curves in runs.values() for curve in curves]
    goals = (0.45, 0.5, 0.55, 0.6)
    needed = [[name, *(reached(curves, goal) for goal in goals)] for name, curves in runs.items()]
    _, precision = choose_precision("auto", torch.device("cpu"))
    return f"""# Four objectives at one budget

Made by `tests/benchmarks/objectives.py` on {date.today().isoformat()} ({platform.machine()} CPU,
{precision.partition(":")[0]}, torch {torch.__version__}). The shipped base model and the reward of the preset
{PRESET}; training seeds {", ".join(map(str, seeds))}, each with a pool of {config.pool_size} samples that its four
objectives share. Batch {config.batch}, learning rate {config.lr:g}, one schedule, tilt {config.tilt:g}: everything as
the preset has it, nothing tuned for any of them. Every step is two forwards and one backward a sample for all four.

P(o=1) on held-out prompts at strength 1, n = {n} pictures of the same noise in every cell: mean over the seeds, lowest
and highest in brackets. The standard error of one cell is at most {0.5 / n**0.5:.3f}. The base model:
{np.mean([row[1] for row in base]):.3f}, quality {np.mean([row[2] for row in base]):.3f}.

By samples seen:

{markdown(titles, rates)}

Samples needed to reach a rate ("in 2 of 3": of the seeds):

{markdown(["objective", *(f"{goal:g}" for goal in goals)], needed)}

Picture quality (template overlap), mean:

{markdown(titles, quality)}

![Reward against samples seen](../pictures/objectives.png)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/objectives"), help="folder for pools and measurements")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (default: 0 1 2)")
    parser.add_argument("--n", type=int, default=600, help="pictures a measurement, a multiple of 15 (default: 600)")
    parser.add_argument("--no-report", action="store_true", help="train and measure only")
    args = parser.parse_args()
    runs = {name: [one_curve(name, seed, args.n, args.work) for seed in args.seeds] for name in OBJECTIVES}
    if args.no_report:
        return
    title = f"shapes-warm, training runs: {len(args.seeds)}, n = {args.n} a point"
    plot(runs, DOCS / "pictures" / "objectives.png", title)
    text = report(runs, args.seeds, args.n)
    (DOCS / "measured" / "objectives.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
