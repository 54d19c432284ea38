"""ShapesEval of shapes-follow: while it learned, and by strength beside the rivals.

    diffusion-nft train shapes_follow --out runs/shapes-follow
    diffusion-nft train shapes_follow --out runs/seed1 --set seed=1
    diffusion-nft train shapes_follow --out runs/free --set eta0=null --set rounds=420
    python tests/benchmarks/follow.py --run runs/shapes-follow --others runs/seed1 runs/free --write

The adapter is the run's best, by its sweeps, and the curve is read from the run's own records. The tables are drawn
anew: held-out prompts, equally many of each category, the same noise in every column, guidance beside LoRA weight
strength and classifier-free guidance. All runs have a line each, with their last adapter. --write makes
docs/measured/follow.md and docs/pictures/follow.png of it.
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
from nft_pipeline.training.demo.measure import Workload, with_lora
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.demo.shapes_eval import scores_table, shapes_eval_scores
from nft_pipeline.training.devices.precision import choose_precision
from nft_pipeline.training.settings.config import TrainConfig
from nft_pipeline.training.shapes.prompts import HELD_OUT_SEED
from nft_pipeline.training.shapes.score import shapes_eval_prompts
from nft_pipeline.training.show.picture_stats import diversity, shrunk
from nft_pipeline.training.show.sweep import GROUP

DOCS = Path(__file__).parents[2] / "docs"
STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
WEIGHTS = (0.5, 1.25, 1.5, 2.0)  # 1 is strength 1: one pass with the LoRA on
WITH_CFG = (0.5, 1.0, 2.0)
GROUPS = 60  # prompts that diversity is measured on
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


class Bench:
    """Draws held-out prompts, the same with the same noise for whatever is to be scored.

    Args:
        n: pictures.
        call, dtype: as `Workload`.
    """

    def __init__(self, n: int, call: dict[str, Any], dtype: torch.dtype) -> None:
        self.prompts = shapes_eval_prompts(n, seed=HELD_OUT_SEED)
        texts = [prompt.text() for _, prompt in self.prompts]
        self.work = Workload(texts, n=n, seed=3, batch=150, call=call, dtype=dtype)
        some = texts[:: max(1, n // GROUPS)][:GROUPS]
        self.groups = Workload(some, n=GROUP * len(some), seed=4, batch=120, call=call, dtype=dtype)

    def score(self, pipe: Any, label: str, **steering: Any) -> dict[str, Any]:
        """As `shapes_eval_scores`, with "diversity": how unlike pictures of one prompt are."""
        if "nft_strength" in steering:
            steering = {"nft_law": "nft", **steering}  # the factor of the push, whatever a calibration makes of it
        found = shapes_eval_scores(self.work.pictures(pipe, label, **steering), self.prompts)
        pictures = shrunk(self.groups.pictures(pipe, **steering))
        prompt = np.arange(len(pictures)) % len(self.groups.prompts)
        return {**found, "diversity": float(diversity(pictures, prompt).mean())}


def table(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table, one column a setting; as `scores_table`, with diversity below."""
    last = " | ".join(f"{result['diversity']:.3f}" for result in results.values())
    return f"{scores_table(results)}\n| diversity | {last} |"


def one_line(bench: Bench, run: Path, like: TrainConfig) -> list[str]:
    """A run: what sets it apart from the shipped one, and the scores of its adapter."""
    own, shared = TrainConfig.from_yaml(run / "settings.yaml").to_dict(), like.to_dict()
    apart = [f"{key}: {own[key]}" for key in own if own[key] != shared[key] and key not in ("samples_every", "name")]
    pipe = DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter=str(run / "adapter"))
    scored = [bench.score(pipe, f"{run.name}, strength {s:g}", nft_strength=s) for s in (1.0, 2.0)]
    stock = pipe.unwrap()
    with with_lora(stock, run / "adapter") as name:
        stock.set_adapters(name, 2.0)
        scored.append(bench.score(stock, f"{run.name}, LoRA weight 2"))
    values = [f"{found[what]:.3f}" for found in scored for what in ("overall", "diversity")]
    return [", ".join(apart) or "as shipped", f"{own['rounds']}", *values]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run of the preset shapes_follow")
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="folders of runs with other settings")
    parser.add_argument("--n", type=int, default=600, help="pictures per column, a multiple of 6 (default: 600)")
    parser.add_argument("--write", action="store_true", help="write the page and its picture")
    args = parser.parse_args()
    run_config = TrainConfig.from_yaml(args.run / "settings.yaml")
    pipe = DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter=str(args.run / "best"))
    sampled = pipe.nft_config.training["pool"]["size"]
    dtype, precision = choose_precision("auto", pipe.transformer.device)
    bench = Bench(args.n, dict(pipe.call_defaults), dtype)

    guided = {f"strength {s:g}": bench.score(pipe, f"strength {s:g}", nft_strength=s) for s in (0.0, *STRENGTHS)}
    both = {
        f"strength {s:g}, CFG 1.5": bench.score(pipe, f"strength {s:g} and CFG", nft_strength=s, guidance_scale=1.5)
        for s in WITH_CFG
    }
    stock = pipe.unwrap()
    rivals = {f"CFG {scale:g}": bench.score(stock, f"CFG {scale:g}", guidance_scale=scale) for scale in SCALES}
    with with_lora(stock, args.run / "best") as name:
        for weight in WEIGHTS:
            stock.set_adapters(name, weight)
            rivals[f"LoRA {weight:g}"] = bench.score(stock, f"LoRA weight {weight:g}")
    pictures = DOCS / "pictures" / "follow.png" if args.write else args.run / "follow.png"
    curve, watched = plot_curve(args.run, run_config, pictures)
    rounds = lines_of(args.run / "rounds.jsonl")
    a_round = run_config.round_prompts * run_config.group_size
    runs = markdown(
        [
            "run",
            "rounds",
            *(
                f"{what}: {kind}"
                for what in ("strength 1", "strength 2", "LoRA 2")
                for kind in ("ShapesEval", "diversity")
            ),
        ],
        [one_line(bench, run, run_config) for run in (args.run, *args.others)],
    )
    text = f"""# ShapesEval of shapes-follow

Made by `tests/benchmarks/follow.py` on {date.today().isoformat()} ({platform.machine()} CPU,
{precision.partition(":")[0]}, torch {torch.__version__}) from one training run of the preset shapes_follow, seed
{run_config.seed}: online, `policy` with baseline {run_config.baseline}, optimality {run_config.optimality}, tilt
{run_config.tilt:g} a round, refit {run_config.refit:g} and an anchor at eta0 {run_config.eta0:g}; rounds of
{run_config.round_prompts} prompts with {run_config.group_size} pictures each and {run_config.round_steps} steps,
without classifier-free guidance. The adapter is the one after round {sampled // a_round} ({sampled:,} pictures), whose
sweep was the best of {len(rounds)} rounds. Prompts it is measured on were never trained on; some of them were in the
sweeps that picked it.

## While it learned

{curve}

![ShapesEval by pictures sampled](../pictures/follow.png)

The run's own sweeps, {run_config.sweep_size} pictures of held-out prompts in another mix of categories, drawn at
strength 1 with the running averages of the weights (round 0 is the base model). Diversity is how unlike pictures of one
prompt are:

{watched}

## By strength

n = {args.n} pictures per column, the same prompts and noise in every column, 14 steps; standard error of ShapesEval at
most {0.5 / args.n**0.5:.3f}. Strength is the factor of the push, as `nft_law="nft"` has it, without the calibration
(follow_dial.md): 0 is the base model. Strengths 0 and 1 are one pass per step, others two.
Diversity is how unlike {GROUP} pictures of one prompt are, over {GROUPS} prompts.

{table(guided)}

The rivals, on the same prompts and noise: classifier-free guidance of the base model (two passes), and the weights of
the same LoRA scaled (one pass; at 1 it is strength 1):

{table(rivals)}

On top of classifier-free guidance:

{table(both)}

## Other runs

Each differs from the shipped one by what is named. Here all are measured after their last round:

{runs}
"""
    print(text)
    if args.write:
        (DOCS / "measured" / "follow.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
