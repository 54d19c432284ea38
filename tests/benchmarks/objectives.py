"""Reward against samples seen: the same model, noise and budget, one objective a curve, offline and online.

    python tests/benchmarks/objectives.py --work runs/objectives        # three seeds, half an hour each

Offline, on the reward of shapes_warm, all aim at the same model at strength 1, v_old + tilt Cov(r, y): `positive`
by v_plus and its head in two passes, the others by their LoRA alone. Every training seed has a pool of its own, which
its objectives share. Online, on ShapesEval, `positive` has no place. What was measured is kept in --work, so a run that
was stopped goes on where it was. Writes docs/measured/objectives.md and docs/pictures/objectives.png.
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nft_pipeline.adapter import BaseModel, fingerprint
from nft_pipeline.training.data.sources import offline_pools
from nft_pipeline.training.demo.measure import measure_pictures
from nft_pipeline.training.demo.report import markdown, spread
from nft_pipeline.training.devices.precision import choose_precision
from nft_pipeline.training.learn.learner import Learner
from nft_pipeline.training.rewards.find import find_prompts, find_reward
from nft_pipeline.training.run.trainer import load_base, train
from nft_pipeline.training.settings.config import TrainConfig
from nft_pipeline.training.show.live import Live
from nft_pipeline.training.show.sweep import sweep_rows

OBJECTIVES: dict[str, dict[str, Any]] = {
    "paper": {"objective": "paper"},
    "policy, half": {"objective": "policy", "baseline": "half"},
    "policy, alpha": {"objective": "policy", "baseline": "alpha"},
    "policy, alpha, self-normalised": {"objective": "policy", "baseline": "alpha", "self_normalise": True},
    "positive": {"objective": "positive"},
}
STEPS = (8, 12, 16, 20, 24, 32, 64, 128)  # at which the average so far is drawn
PRESET, REWARD = "shapes_warm", "shapes_warm"
ONLINE_PRESET, ROUNDS, WINDOW = "shapes_follow", 40, 10
# Optimality that puts r at 1/2 in the mean: below it a baseline of 1/2 drives v_old away from its own samples. The
# authors' `group` squeezes r towards 1/2, `rank` does not; each has the tilt at which a 0/1 score of a prompt that
# succeeds half of the time pulls by about 1. No refit, which only `policy` has.
ONLINE = {"round_prompts": 16, "group_size": 16, "refit": 0.0, "self_normalise": False, "eta0": None}
GROUP, RANK = {"optimality": "group", "tilt": 10.0}, {"optimality": "rank", "tilt": 4.0}
ONLINE_RUNS: dict[str, dict[str, Any]] = {
    "paper": OBJECTIVES["paper"] | GROUP,
    "policy, half": OBJECTIVES["policy, half"] | GROUP,
    "policy, alpha": OBJECTIVES["policy, alpha"] | GROUP,
    "policy, alpha, self-normalised": OBJECTIVES["policy, alpha, self-normalised"] | GROUP,
    "paper, rank": OBJECTIVES["paper"] | RANK,
    "policy, alpha, self-normalised, rank": OBJECTIVES["policy, alpha, self-normalised"] | RANK,
}
STYLES = {
    "paper": ("#7a7a80", "-"),
    "policy, half": ("#d1653c", "-"),
    "policy, alpha": ("#2f6fde", "-"),
    "positive": ("#3a9a5b", "-"),
    "policy, alpha, self-normalised": ("#2f6fde", "--"),
    "paper, rank": ("#7a7a80", ":"),
    "policy, alpha, self-normalised, rank": ("#2f6fde", ":"),
}
DOCS = Path(__file__).parents[2] / "docs"


def settings_of(name: str, seed: int) -> TrainConfig:
    """One objective's run. The head's batch is the LoRA's, so that all see equally many samples per step."""
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


def one_online(name: str, seed: int, n: int, work: Path) -> dict[str, Any]:
    """Reward of the samples of every round, and of held-out prompts at the end; from `work` if it was run before."""
    folder = work / f"online{seed}" / name.replace(", ", "_")
    done = folder / f"measured_{n}.json"
    if done.is_file():
        return json.loads(done.read_text())
    change: dict[str, Any] = {"rounds": ROUNDS, "seed": seed, "sweep_size": n, "sweep_strengths": [0.0, 1.0]}
    change |= {"sweep_every": 0, "samples_every": 0, "keep_best": False}
    train(TrainConfig.from_yaml(ONLINE_PRESET, {**change, **ONLINE, **ONLINE_RUNS[name]}), folder)
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    sweep = [json.loads(line)["shapes_eval"] for line in (folder / "sweeps.jsonl").read_text().splitlines()]
    found = {"rounds": [line["mean"]["shapes_eval"] for line in lines], "base": sweep[0], "held_out": sweep[-1]}
    done.write_text(json.dumps(found))
    return found


def windows(rounds: list[float]) -> list[float]:
    """Means over each so many rounds."""
    return [float(np.mean(rounds[i : i + WINDOW])) for i in range(0, len(rounds), WINDOW)]


def to_paper(found: list[dict[str, Any]], paper: list[dict[str, Any]]) -> str:
    """By how much the rounds' samples are better than paper's of the same seed: mean ± standard error."""
    apart = [np.mean(one["rounds"]) - np.mean(other["rounds"]) for one, other in zip(found, paper, strict=True)]
    return f"{np.mean(apart):+.3f} ± {np.std(apart, ddof=1) / len(apart) ** 0.5:.3f}"


def plot(runs: dict[str, list[list[list[float]]]], online: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """The mean curve of each objective, its seeds as a band: offline on the left, online on the right."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4))

    def draw(axes: Any, x: list[float], values: list[list[float]], name: str) -> None:
        rates, (colour, line) = np.array(values), STYLES[name]
        axes.plot(x, rates.mean(0), line, label=name, color=colour, marker="o", markersize=4)
        axes.fill_between(x, rates.min(0), rates.max(0), color=colour, alpha=0.1, linewidth=0)

    for name, curves in runs.items():
        draw(left, [row[0] for row in curves[0]], [[row[1] for row in curve] for curve in curves], name)
    for name, found in online.items():
        draw(
            right,
            [WINDOW * (i + 0.5) for i in range(ROUNDS // WINDOW)],
            [windows(run["rounds"]) for run in found],
            name,
        )
    left.set(xlabel="samples seen", ylabel="P(o=1), held-out prompts", title=f"offline, {REWARD}")
    right.set(xlabel="round", ylabel="ShapesEval of the rounds' samples", title=f"online, {ONLINE_PRESET}")
    for axes in (left, right):
        axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(
    runs: dict[str, list[list[list[float]]]], online: dict[str, list[dict[str, Any]]], seeds: list[int], n: int
) -> str:
    """docs/measured/objectives.md."""
    config, some = settings_of("paper", 0), next(iter(runs.values()))
    follow = TrainConfig.from_yaml(ONLINE_PRESET, {**ONLINE, **GROUP})
    titles = ["objective", *(f"{row[0]:,.0f}" for row in some[0][1:])]
    rates = [
        [name, *(spread([curve[i][1] for curve in curves]) for i in range(1, len(curves[0])))]
        for name, curves in runs.items()
    ]
    base = [curve[0] for curves in runs.values() for curve in curves]
    quality = {name: np.mean([curve[-1][2] for curve in curves]) for name, curves in runs.items()}
    by_round = [
        [
            name,
            *(spread([windows(run["rounds"])[i] for run in found]) for i in range(ROUNDS // WINDOW)),
            spread([run["held_out"] for run in found]),
            "" if name == "paper" else to_paper(found, online["paper"]),
        ]
        for name, found in online.items()
    ]
    first = [f"{WINDOW * i + 1} to {WINDOW * (i + 1)}" for i in range(ROUNDS // WINDOW)]
    base_online = np.mean([run["base"] for found in online.values() for run in found])
    _, precision = choose_precision("auto", torch.device("cpu"))
    return f"""# Objectives at one budget

Made by `tests/benchmarks/objectives.py` on {date.today().isoformat()} ({platform.machine()} CPU,
{precision.partition(":")[0]}, torch {torch.__version__}). Training seeds {", ".join(map(str, seeds))}; entries are the
mean over them, with the lowest and highest in brackets.

![Reward against samples seen](../pictures/objectives.png)

## Offline

The shipped base model and the reward of the preset {PRESET}. Each seed has a pool of {config.pool_size} samples that
the objectives share. Batch {config.batch}, learning rate {config.lr:g}, {config.steps} steps on one schedule, tilt
{config.tilt:g}: nothing was tuned for any of them. A step is two forwards and one backward per sample for all.

P(o=1) on held-out prompts at strength 1, n = {n} pictures of the same noise in every cell; the standard error of one
cell is at most {0.5 / n**0.5:.3f}. The base model: {np.mean([row[1] for row in base]):.3f}. By samples seen:

{markdown(titles, rates)}

Picture quality (template overlap) at the end: {", ".join(f"{name} {value:.3f}" for name, value in quality.items())};
of the base model {np.mean([row[2] for row in base]):.3f}.

## Online

ShapesEval by the preset {ONLINE_PRESET}, but {ROUNDS} rounds of {follow.round_prompts * follow.group_size} pictures
({follow.group_size} per prompt) and {follow.round_steps} steps of {follow.batch} samples, two forwards and one backward
each; no anchor, no refit. Optimality is the authors' group with tilt {GROUP["tilt"]:g}, or rank with tilt
{RANK["tilt"]:g}. ShapesEval of the pictures sampled, by rounds, and of {n} pictures of held-out prompts at strength 1
at the end (base model: {base_online:.3f}, in the mix of categories of the run's sweep). A seed draws the same prompts
and noise for all, so rows compare better than their brackets say: the last column is the difference to paper over all
rounds, seed by seed, with its standard error.

{markdown(["objective", *first, "held out", "rounds, to paper"], by_round)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/objectives"), help="folder for pools and measurements")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (default: 0 1 2)")
    parser.add_argument("--n", type=int, default=600, help="pictures a measurement, a multiple of 15 (default: 600)")
    parser.add_argument("--no-report", action="store_true", help="train and measure only")
    args = parser.parse_args()
    runs = {name: [one_curve(name, seed, args.n, args.work) for seed in args.seeds] for name in OBJECTIVES}
    online = {name: [one_online(name, seed, args.n, args.work) for seed in args.seeds] for name in ONLINE_RUNS}
    if args.no_report:
        return
    plot(runs, online, DOCS / "pictures" / "objectives.png")
    text = report(runs, online, args.seeds, args.n)
    (DOCS / "measured" / "objectives.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
