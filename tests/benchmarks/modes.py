"""Two passes or one: both laws in both modes on the shapes model, beside the promise and beside LoRA weight.

    python -m tests.benchmarks.modes        # the shipped adapter, three seeds of prompts' noise

Each seed's measurement is kept in --work; seeds may be measured by processes of their own with --no-report, and a last
run without it writes docs/measured/modes.md. (How adapters of several trainings differ: tests/benchmarks/tilt.py.)
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import date
from pathlib import Path

import numpy as np
import torch

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import read_adapter
from nft_pipeline.adapter_read import locate
from nft_pipeline.training.precision import choose_precision
from nft_pipeline.training.reward import find_reward
from nft_pipeline.training.shapes.measure import (
    Point,
    matched_quality,
    measure_base,
    measure_laws,
    measure_lora_weight,
)
from nft_pipeline.training.shapes.report import markdown
from tests.benchmarks.tilt import DOCS, WEIGHTS, spread, workload

TILTS = (1.0, 2.0, 4.0)
LAWS = ("odds", "nft")
MODES = ("two_pass", "single")


def one_run(seed: int, n: int, adapter: str, work: Path) -> dict:
    """Measure on the noise of a seed; from `work` if it was done before."""
    done = work / f"{Path(adapter).name}_seed{seed}_{n}.json"
    if done.is_file():
        return json.loads(done.read_text())
    reward, guided = find_reward("shapes_warm"), DiffusionNFTPipeline.from_pretrained("shapes")
    load = workload(seed, n, dict(guided.call_defaults))
    base = measure_base(guided.unwrap(), load, reward)
    guided.load_nft_adapter(read_adapter(adapter))
    modes = {mode: measure_laws(guided, load, reward, base, TILTS, LAWS, mode) for mode in MODES}
    rivals = measure_lora_weight(guided.unwrap(), locate(adapter), load, reward, base, WEIGHTS)
    measured = {
        "base": base.to_dict(),
        "modes": {mode: [point.to_dict() for point in points] for mode, points in modes.items()},
        "rivals": [point.to_dict() for point in rivals],
    }
    work.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(measured))
    return measured


def report(runs: list[dict], n: int, adapter: str) -> str:
    """docs/measured/modes.md."""
    rivals = [[Point(**point) for point in run["rivals"]] for run in runs]
    base_quality = float(np.mean([run["base"]["quality"] for run in runs]))
    rows = []
    for law in LAWS:
        for tilt in TILTS:
            for mode in MODES:
                points = [[Point(**point) for point in run["modes"][mode]] for run in runs]
                same = [next(p for p in run if p.method == law and p.setting == tilt) for run in points]
                matched = [matched_quality(rival, p.rate) for rival, p in zip(rivals, same, strict=True)]
                reached = [quality for quality in matched if quality is not None]
                rows.append(
                    [
                        law,
                        f"{tilt:g}",
                        mode,
                        f"{np.mean([p.promise for p in same]):.3f}",
                        spread([p.rate for p in same]),
                        spread([p.quality for p in same]),
                        f"{np.mean(reached):.3f}" if len(reached) == len(same) else "out of its reach",
                    ]
                )
    head = ["law", "tilt", "mode", "promised", "measured P(o=1)", "quality", "LoRA weight, same P(o=1): quality"]
    weights = [
        [
            f"{weight:g}",
            spread([p.rate for run in rivals for p in run if p.setting == weight]),
            spread([p.quality for run in rivals for p in run if p.setting == weight]),
        ]
        for weight in sorted((0.0, *WEIGHTS))
    ]
    _, precision = choose_precision("auto", torch.device("cpu"))
    device = f"{platform.machine()} CPU, {precision.partition(':')[0]}, torch {torch.__version__}"
    return f"""# Two passes or one

Made by `python -m tests.benchmarks.modes --n {n}` on {date.today().isoformat()} ({device}). The adapter {adapter} on
the shapes model, reward "shapes_warm": {len(runs)} seeds of noise, n = {n} pictures a seed and row of held-out prompts,
14 steps, no classifier-free guidance. Entries are means over the seeds, the lowest and highest in brackets; the
standard error of one seed's rate is at most {0.5 / n**0.5:.3f}, of the mean {0.5 / (n * len(runs)) ** 0.5:.3f}. One
adapter: what another training would give is not in the spread. Two passes take two forwards a step; single, like LoRA
weight, takes one.

Base model: P(o=1) {spread([run["base"]["rate"] for run in runs])}, quality {base_quality:.3f}.

{markdown(head, rows)}

LoRA weight strength, the same LoRA with its weights scaled by one number:

{markdown(["LoRA weight", "measured P(o=1)", "quality"], weights)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", default="shapes-warm", help="a shipped name or a folder (default: shapes-warm)")
    parser.add_argument("--work", type=Path, default=Path("runs/modes"), help="folder that keeps what was measured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds of the noise (default: 1 2 3)")
    parser.add_argument("--n", type=int, default=330, help="pictures a seed and row, a multiple of 15 (default: 330)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--no-report", action="store_true", help="measure only")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    runs = [one_run(seed, args.n, args.adapter, args.work) for seed in args.seeds]
    if not args.no_report:
        text = report(runs, args.n, args.adapter)
        (DOCS / "measured" / "modes.md").write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
