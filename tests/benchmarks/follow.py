"""ShapesEval of shapes-follow by strength, beside LoRA weight strength and classifier-free guidance.

    diffusion-nft train shapes_follow --out runs/shapes-follow
    python tests/benchmarks/follow.py --adapter runs/shapes-follow/adapter

Held-out prompts, 100 of each category, the same noise in every column. Prints the tables; --write puts them into
docs/measured/follow.md.
"""

from __future__ import annotations

import argparse
import platform
from datetime import date
from pathlib import Path

import torch

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import write_adapter
from nft_pipeline.training.precision import choose_precision
from nft_pipeline.training.shapes.evaluate import scores_table, shapes_eval_scores
from nft_pipeline.training.shapes.measure import Workload, with_lora
from nft_pipeline.training.shapes.rewards import HELD_OUT_SEED
from nft_pipeline.training.shapes.score import shapes_eval_prompts

DOCS = Path(__file__).parents[2] / "docs"
STRENGTHS = (0.5, 1.0, 2.0)
WEIGHTS = (0.5, 1.0, 1.5)
SCALES = (1.5, 2.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True, help="adapter folder")
    parser.add_argument("--n", type=int, default=600, help="pictures a column (default: 600)")
    parser.add_argument("--write", action="store_true", help="write docs/measured/follow.md")
    args = parser.parse_args()
    prompts = shapes_eval_prompts(args.n, seed=HELD_OUT_SEED)
    pipe = DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter=args.adapter)
    adapter, config = pipe.nft_adapters["default"], pipe.nft_config
    dtype, _ = choose_precision("auto", pipe.transformer.device)
    texts, call = [prompt.text() for _, prompt in prompts], dict(pipe.call_defaults)
    work = Workload(texts, n=args.n, seed=3, batch=150, call=call, dtype=dtype)

    def score(pipeline, label, **steering):
        return shapes_eval_scores(work.pictures(pipeline, label, **steering), prompts)

    guided = {"base": score(pipe, "base", nft_strength=0.0)}
    for law in ("odds", "nft"):
        for strength in STRENGTHS:
            guided[f"{law} {strength:g}"] = score(pipe, f"{law} {strength:g}", nft_strength=strength, nft_law=law)
    both = score(pipe, "odds 1 and cfg 1.5", nft_strength=1.0, nft_law="odds", guidance_scale=1.5)
    stock = pipe.unwrap()
    rivals = {f"cfg {scale:g}": score(stock, f"cfg {scale:g}", guidance_scale=scale) for scale in SCALES}
    folder = write_adapter(Path("runs/follow-benchmark-adapter"), adapter)
    with with_lora(stock, folder) as name:
        for weight in WEIGHTS:
            stock.set_adapters(name, weight)
            rivals[f"LoRA {weight:g}"] = score(stock, f"LoRA weight {weight:g}")
    error = 0.5 / args.n**0.5
    text = f"""# ShapesEval of shapes-follow

Made by `tests/benchmarks/follow.py` on {date.today().isoformat()} ({platform.machine()} CPU, torch
{torch.__version__}). n = {args.n} held-out prompts a column, one training run, 14 steps, the same noise in every
column; standard error of ShapesEval at most {error:.3f}. Strength 1 is tilt {config.tilt:g}.
"nft" and "odds" are the two laws, two passes a step; base and LoRA weight are one pass, CFG two.

Guidance, without CFG:

{scores_table(guided)}

The rivals:

{scores_table(rivals)}

Guidance on top of CFG 1.5 (odds law, strength 1): ShapesEval {both["overall"]:.3f}, quality {both["quality"]:.3f},
four passes a step.
"""
    print(text)
    if args.write:
        (DOCS / "measured").mkdir(parents=True, exist_ok=True)
        (DOCS / "measured" / "follow.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
