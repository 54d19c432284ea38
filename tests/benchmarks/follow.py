"""ShapesEval of shapes-follow: while it learned, and by strength beside the rivals.

    diffusion-nft train shapes_follow --out runs/shapes-follow
    python tests/benchmarks/follow.py --run runs/shapes-follow --write

The adapter is the run's best, by its sweeps, and the curve is read from the run's own records. The tables are drawn
anew: held-out prompts, equally many of each category, the same noise in every column, guidance beside LoRA weight
strength and classifier-free guidance. --write makes docs/measured/follow.md and docs/pictures/follow.png of it.
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

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.training.config import TrainConfig
from nft_pipeline.training.precision import choose_precision
from nft_pipeline.training.shapes.evaluate import scores_table, shapes_eval_scores
from nft_pipeline.training.shapes.measure import Workload, with_lora
from nft_pipeline.training.shapes.report import markdown
from nft_pipeline.training.shapes.rewards import HELD_OUT_SEED
from nft_pipeline.training.shapes.score import shapes_eval_prompts

DOCS = Path(__file__).parents[2] / "docs"
STRENGTHS = (0.5, 1.0, 1.5, 2.0)
WEIGHTS = (0.5, 1.5, 2.0)  # 1 is strength 1: one pass with the LoRA on
SCALES = (1.5, 2.5, 4.0)
WATCHED = ("shapes_eval", "diversity", "colour entropy", "edge density")
WINDOW = 10  # rounds that a point of the curve is the mean of


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def plot_curve(run: Path, config: TrainConfig, path: Path) -> tuple[str, str]:
    """The reward of a run's own samples round by round and its held-out sweeps; tables of both."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    a_round = config.round_prompts * config.group_size
    rounds = np.array([line["mean"]["shapes_eval"] for line in lines_of(run / "rounds.jsonl")])
    smooth = np.array([rounds[max(0, i - WINDOW + 1) : i + 1].mean() for i in range(len(rounds))])
    sweeps = [line for line in lines_of(run / "sweeps.jsonl") if line["strength"] == 1]
    seen = [line["step"] / config.round_steps * a_round for line in sweeps]
    found = [line["shapes_eval"] for line in sweeps]
    error = [line["shapes_eval ±"] for line in sweeps]
    figure, axes = plt.subplots(figsize=(6.8, 4.2))
    axes.plot(
        a_round * (1 + np.arange(len(rounds))), smooth, color="#2f6fde", label=f"training prompts, {WINDOW} rounds"
    )
    axes.errorbar(
        seen, found, yerr=error, color="#d1653c", marker="o", markersize=4, label="held-out prompts, averages"
    )
    axes.set(xlabel="pictures sampled and scored", ylabel="ShapesEval", ylim=(0, 1), title="shapes-follow, online")
    axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    watched = [
        [f"{line['step'] // config.round_steps}", *(f"{line[name]:.3f} ± {line[f'{name} ±']:.3f}" for name in WATCHED)]
        for line in [
            next(line for line in lines_of(run / "sweeps.jsonl") if line["strength"] == 0) | {"step": 0},
            *sweeps,
        ]
    ]
    some = sorted({0, 4, *range(9, len(rounds), max(1, len(rounds) // 10)), len(rounds) - 1})
    rows = [[f"{i + 1}", f"{(i + 1) * a_round:,}", f"{smooth[i]:.3f}"] for i in some]
    own = markdown(["round", "pictures so far", f"ShapesEval of the last {WINDOW} rounds' own samples"], rows)
    return own, markdown(["round", "ShapesEval", "diversity", "colour entropy", "edge density"], watched)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run of the preset shapes_follow")
    parser.add_argument("--n", type=int, default=600, help="pictures a column, a multiple of 6 (default: 600)")
    parser.add_argument("--write", action="store_true", help="write the page and its picture")
    args = parser.parse_args()
    run_config = TrainConfig.from_yaml(args.run / "settings.yaml")
    prompts = shapes_eval_prompts(args.n, seed=HELD_OUT_SEED)
    pipe = DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter=str(args.run / "best"))
    sampled = pipe.nft_config.training["pool"]["size"]
    dtype, precision = choose_precision("auto", pipe.transformer.device)
    texts, call = [prompt.text() for _, prompt in prompts], dict(pipe.call_defaults)
    work = Workload(texts, n=args.n, seed=3, batch=150, call=call, dtype=dtype)

    def score(pipeline: Any, label: str, **steering: Any) -> dict[str, Any]:
        return shapes_eval_scores(work.pictures(pipeline, label, **steering), prompts)

    guided = {f"strength {s:g}": score(pipe, f"strength {s:g}", nft_strength=s) for s in (0.0, *STRENGTHS)}
    both = {
        f"strength {s:g}, CFG 1.5": score(pipe, f"strength {s:g} and CFG", nft_strength=s, guidance_scale=1.5)
        for s in (0.5, 1.0)
    }
    stock = pipe.unwrap()
    rivals = {f"CFG {scale:g}": score(stock, f"CFG {scale:g}", guidance_scale=scale) for scale in SCALES}
    with with_lora(stock, args.run / "best") as name:
        for weight in WEIGHTS:
            stock.set_adapters(name, weight)
            rivals[f"LoRA {weight:g}"] = score(stock, f"LoRA weight {weight:g}")
    pictures = DOCS / "pictures" / "follow.png" if args.write else args.run / "follow.png"
    curve, watched = plot_curve(args.run, run_config, pictures)
    rounds = lines_of(args.run / "rounds.jsonl")
    a_round = run_config.round_prompts * run_config.group_size
    text = f"""# ShapesEval of shapes-follow

Made by `tests/benchmarks/follow.py` on {date.today().isoformat()} ({platform.machine()} CPU,
{precision.partition(":")[0]}, torch {torch.__version__}) from one training run of the preset shapes_follow, seed
{run_config.seed}: online, `policy` with baseline {run_config.baseline} and refit {run_config.refit:g}, rounds of
{a_round} pictures and {run_config.round_steps} steps, without classifier-free guidance. The adapter is the one after
round {sampled // a_round} ({sampled:,} pictures), whose sweep was the best of {len(rounds)} rounds; {run_config.rounds}
were set. Prompts it is measured on were never trained on; some of them were in the sweeps that picked it.

## While it learned

{curve}

![ShapesEval by pictures sampled](../pictures/follow.png)

The run's own sweeps, {run_config.sweep_size} pictures of held-out prompts in another mix of categories, drawn at
strength 1 with the running averages of the weights (round 0 is the base model). Diversity is how unlike pictures of one
prompt are:

{watched}

## By strength

n = {args.n} pictures a column, the same prompts and noise in every column, 14 steps; standard error of ShapesEval at
most {0.5 / args.n**0.5:.3f}. Strength 0 is the base model. Strengths 0 and 1 are one pass a step, others two.

{scores_table(guided)}

The rivals, on the same prompts and noise: classifier-free guidance of the base model (two passes), and the weights of
the same LoRA scaled (one pass; at 1 it is strength 1):

{scores_table(rivals)}

On top of classifier-free guidance:

{scores_table(both)}
"""
    print(text)
    if args.write:
        (DOCS / "measured" / "follow.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
