"""Promise against measurement on the shapes model: the calibrated dial and the laws alone, LoRA weight beside them.

    python tests/benchmarks/tilt.py --work runs/tilt            # three training seeds

Every training seed gets its own pool, adapter and measurement, kept in --work, so a stopped run goes on where it was.
Writes docs/pictures/tilt.png, docs/pictures/alpha_reliability.png and docs/measured/tilt.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import read_adapter
from nft_pipeline.dial.forecast import forecast
from nft_pipeline.dial.scale import BARELY
from nft_pipeline.training.demo.measure import (
    CALIBRATED,
    Point,
    Workload,
    matched_quality,
    measure_base,
    measure_laws,
    measure_lora_weight,
    measure_rates,
)
from nft_pipeline.training.demo.report import markdown, plot_promise, spread
from nft_pipeline.training.devices.precision import choose_precision
from nft_pipeline.training.dial.measure_adapter import draws_of
from nft_pipeline.training.learn.calibration import Calibration, plot_reliability
from nft_pipeline.training.rewards.find import Scorer, find_prompts, find_reward
from nft_pipeline.training.run.trainer import train
from nft_pipeline.training.settings.config import TrainConfig

TILTS = (-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 4.0)
LAWS = ("odds", "nft")
WAYS = {"own": (CALIBRATED,), "two_pass": LAWS, "single": ("odds",)}  # "own": the mode that the calibration chose
WEIGHTS = (-1.0, -0.5, 0.25, 0.5, 0.75, 1.0, 1.5)
RATES = (0.5, 0.7, 0.9)  # asked for by nft_rate
NOISE_SEED = 80_001
MORE = 4  # times as many pictures for the mean of alpha, which has to be known to less than .01
DOCS = Path(__file__).parents[2] / "docs"


def one_training(seed: int, work: Path) -> tuple[Path, dict]:
    """Train with `seed`, or take it from `work` if it was done before; the run's folder and what it reported."""
    folder = work / f"seed{seed}"
    if (folder / "adapter").is_dir() and (folder / "trained.json").is_file():
        return folder, json.loads((folder / "trained.json").read_text())
    started = time.monotonic()
    result = train(TrainConfig.from_yaml("shapes_warm", {"seed": seed, "samples_every": 0, "sweep_size": 0}), folder)
    trained = {"calibration": [c.to_dict() for c in result.calibration], "seconds": time.monotonic() - started}
    (folder / "trained.json").write_text(json.dumps(trained))
    return folder, trained


def workload(seed: int, n: int, call: dict) -> Workload:
    """Held-out prompts and the noise of a training seed."""
    dtype, _ = choose_precision("auto", torch.device("cpu"))
    prompts = find_prompts("shapes_warm_held_out")
    return Workload(prompts, n=n, seed=NOISE_SEED + seed, batch=207, call=call, dtype=dtype)


def one_run(seed: int, n: int, work: Path) -> dict:
    """Train with `seed` and measure; from `work` if it was done before."""
    done = work / f"seed{seed}" / f"measured_{n}.json"
    if done.is_file():
        return json.loads(done.read_text())
    folder, trained = one_training(seed, work)
    reward, guided = find_reward("shapes_warm"), DiffusionNFTPipeline.from_pretrained("shapes")
    load = workload(seed, n, dict(guided.call_defaults))
    base = measure_base(guided.unwrap(), load, reward)
    guided.load_nft_adapter(read_adapter(folder / "adapter"))
    own = [guided.nft_config.dial.own.mode, guided.nft_config.dial.own.slope]
    alphas = mean_alphas(guided, load, reward)
    rates = measure_rates(guided, load, reward, RATES)
    modes = {mode: measure_laws(guided, load, reward, base, TILTS, laws, mode) for mode, laws in WAYS.items()}
    rivals = measure_lora_weight(guided.unwrap(), folder / "adapter", load, reward, base, WEIGHTS)
    measured = {
        "seed": seed,
        "base": base.to_dict(),
        "modes": {mode: [point.to_dict() for point in points] for mode, points in modes.items()},
        "rivals": [point.to_dict() for point in rivals],
        "own": own,
        "alphas": alphas,
        "rates": [point.to_dict() for point in rates],
        **trained,
    }
    done.write_text(json.dumps(measured))
    return measured


def mean_alphas(guided: DiffusionNFTPipeline, load: Workload, reward: Scorer) -> list[list[float]]:
    """The noise level of each step of the base model, with alpha less what became of the same pictures: mean and its
    standard error, of alpha alone and as the adapter's dial mends it. The means have to be 0 (M12)."""
    draws = draws_of(guided, "default", load.prompts, load.batch, load.call)
    rows = [(i % len(load.prompts), load.seed + i) for i in range(MORE * load.n)]
    drawn = draws.draw(rows, BARELY, "single", 1.0)
    liked = np.asarray(reward(drawn.pictures, [load.prompts[prompt] for prompt, _ in rows]))
    levels, alphas = torch.from_numpy(drawn.levels), torch.from_numpy(drawn.alphas)
    mended = forecast(guided.nft_config, None, alphas, 0.0, levels[:, None])
    off, mended_off = alphas.numpy() - liked, mended.numpy() - liked
    columns = [drawn.levels]
    for values in (off, mended_off):
        columns += [values.mean(1), values.std(1) / len(rows) ** 0.5]
    return np.stack(columns, 1).tolist()


def off_words(steps: list[list[float]], place: int) -> str:
    """One step of all runs, as `mean_alphas` gives it: the mean over the runs of the mean at a place, and its error."""
    means, errors = np.array(steps)[:, place], np.array(steps)[:, place + 1]
    return f"{means.mean():+.3f} ± {np.sqrt((errors**2).sum()) / len(steps):.3f}"


def law_table(runs: list[dict], mode: str) -> str:
    """The laws in a mode, LoRA weight at the same P(o=1) beside them."""
    points = [[Point(**point) for point in run["modes"][mode]] for run in runs]
    rivals = [[Point(**point) for point in run["rivals"]] for run in runs]
    base_quality = float(np.mean([run["base"]["quality"] for run in runs]))
    rows = []
    for law in WAYS[mode]:
        for tilt in TILTS:
            same = [next(p for p in run if p.method == law and p.setting == tilt) for run in points]
            matched = [matched_quality(rival, p.rate) for rival, p in zip(rivals, same, strict=True)]
            reached = [quality for quality in matched if quality is not None]
            rows.append(
                [
                    law,
                    f"{tilt:+g}",
                    f"{np.mean([p.promise for p in same]):.3f}",
                    spread([p.rate for p in same]),
                    f"{np.mean([p.rate - p.promise for p in same]):+.3f}",
                    spread([p.quality for p in same]),
                    f"{np.mean([p.quality for p in same]) - base_quality:+.3f}",
                    f"{np.mean(reached):.3f}" if len(reached) == len(same) else "out of its reach",
                ]
            )
    head = [
        "law",
        "tilt",
        "promised",
        "measured P(o=1)",
        "off by",
        "quality",
        "against base",
        "LoRA weight, same P(o=1): quality",
    ]
    return markdown(head, rows)


def report(runs: list[dict], n: int) -> str:
    """The tables of docs/measured/tilt.md."""
    rivals = [[Point(**point) for point in run["rivals"]] for run in runs]
    base_quality = float(np.mean([run["base"]["quality"] for run in runs]))
    weights = markdown(
        ["LoRA weight", "measured P(o=1)", "quality"],
        [
            [
                f"{w:g}",
                spread([p.rate for r in rivals for p in r if p.setting == w]),
                spread([p.quality for r in rivals for p in r if p.setting == w]),
            ]
            for w in sorted((0.0, *WEIGHTS))
        ],
    )
    levels = [c["noise_level"] for c in runs[0]["calibration"]]
    alpha = markdown(
        ["noise level t", "AUC", "calibration error", "mean alpha", "mean reward"],
        [
            [
                f"{t:g}",
                *(
                    spread([run["calibration"][i][key] for run in runs])
                    for key in ("auc", "error", "mean_alpha", "mean_r")
                ),
            ]
            for i, t in enumerate(levels)
        ],
    )
    asked = markdown(
        ["asked for", "measured P(o=1)", "off by", "quality"],
        [
            [
                f"{rate:g}",
                spread([p["rate"] for p in same]),
                f"{np.mean([p['rate'] for p in same]) - rate:+.3f}",
                spread([p["quality"] for p in same]),
            ]
            for rate in RATES
            for same in [[p for run in runs for p in run["rates"] if p["setting"] == rate]]
        ],
    )
    steps = markdown(
        ["noise level", "alpha", "alpha as the dial mends it"],
        [
            [f"{row[0]:.3f}", *(off_words([run["alphas"][step] for run in runs], place) for place in (1, 3))]
            for step, row in enumerate(runs[0]["alphas"])
        ],
    )
    _, precision = choose_precision("auto", torch.device("cpu"))
    device = f"{platform.machine()} CPU, {precision.partition(':')[0]}, torch {torch.__version__}"
    own = "; ".join(f"{run['own'][0]}, alpha trusted by {run['own'][1]:.2f}" for run in runs)
    return f"""# Promise and measurement on the shapes model

Made by `tests/benchmarks/tilt.py` on {date.today().isoformat()} ({device}).
Reward "shapes_warm": everything drawn is red or orange, where the prompt leaves the colour open.
Training runs: {len(runs)}, each with its own pool, seed and adapter; every row has n = {n} pictures per run of held-out
prompts and noise, 14 steps, no classifier-free guidance. Entries are the mean over the runs, with the lowest and
highest in brackets if there are several. The standard error of one run's
rate is at most {0.5 / n**0.5:.3f}.

Base model: P(o=1) {spread([run["base"]["rate"] for run in runs])}, quality {base_quality:.3f} (overlap with drawn
templates, 1 = as drawn).
The promise is p e^λ / (1 - p + p e^λ) for each prompt and then averaged (M10 and M11 in [theory.md](../theory.md)),
from each run's own base rates. Between prompts their standard deviation is
{spread([run["base"]["spread"] for run in runs])}.

The adapter's own way, as its run calibrated it: {own}. The promise ends where the calibration says that
the adapter reaches no further.

{law_table(runs, "own")}

`nft_rate` goes through the same map. It asks for a rate instead of a tilt:

{asked}

Two passes by the laws alone, without the calibration: two forwards per step.

{law_table(runs, "two_pass")}

![Promise and measurement](../pictures/tilt.png)

One pass by the odds law alone (`nft_mode="single"`): the LoRA's weights at scale s for each sample, alpha from the
step before; one forward per step, as LoRA weight.

{law_table(runs, "single")}

The rival, plain LoRA weight strength (the same LoRA, one pass, weights scaled):

{weights}

Classifier-free guidance is no rival here: the prompts do not name the colour, so it has nothing to follow.

## The alpha head

On held-out prompts and pictures, {runs[0]["calibration"][0]["n"]} pairs of picture and noise per run and level. AUC is
the chance that a liked picture's alpha is above a disliked one's.

{alpha}

![Reliability by noise level](../pictures/alpha_reliability.png)

While the base model draws, the mean of alpha should stay at the base rate from step to step (M12). Entries are means
of alpha less 1 for a liked picture and 0 for another, over {MORE * n:,} pictures of the base model per run, with their
standard errors. Live forecasts and gates go by alpha as the adapter's dial mends it, with the slope and the offsets
that its calibration found from other noise:

{steps}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/tilt"), help="folder for pools, adapters, measurements")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="training seeds (default: 0 1 2)")
    parser.add_argument("--n", type=int, default=1035, help="pictures a point, a multiple of 15 (default: 1035)")
    parser.add_argument("--no-report", action="store_true", help="train and measure only")
    args = parser.parse_args()
    runs = [one_run(seed, args.n, args.work) for seed in args.seeds]
    if args.no_report:
        return
    pictures, measured = DOCS / "pictures", DOCS / "measured"
    pictures.mkdir(parents=True, exist_ok=True)
    measured.mkdir(parents=True, exist_ok=True)
    points = [[Point(**point) for mode in ("own", "two_pass") for point in run["modes"][mode]] for run in runs]
    rivals = [Point(**point) for run in runs for point in run["rivals"]]
    plot_promise(
        points, rivals, pictures / "tilt.png", f"shapes-warm, training runs: {len(runs)}, n = {args.n} a point"
    )
    calibration = [Calibration(**{**c, "bins": tuple(map(tuple, c["bins"]))}) for c in runs[0]["calibration"]]
    plot_reliability(calibration, pictures / "alpha_reliability.png", "alpha on held-out samples, first run")
    text = report(runs, args.n)
    (measured / "tilt.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
