"""`diffusion-nft eval`: ShapesEval of the shapes model by category, with or without an adapter."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from nft_pipeline.laws import LAWS, laws_explained

HELP = "score the shapes model on ShapesEval, with or without an adapter"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft eval`."""
    parser.description = (
        "Samples held-out prompts of six categories and checks every picture against its prompt, from pixels alone: "
        "the share of pictures in which everything named is right, the share of named things that are right, and "
        "picture quality (overlap with drawn templates). About half a minute for 600 pictures on two cores."
    )
    parser.add_argument("--model", default="shapes", help='"shapes", or a folder of a model trained on the same world')
    parser.add_argument("--adapter", help="a shipped adapter's name, a folder or a Hub id; without it, the base model")
    parser.add_argument(
        "--strengths",
        type=float,
        nargs="+",
        default=[0.0, 1.0],
        help="strengths to score (default: 0 1); 0 is the base model. Only with --adapter",
    )
    parser.add_argument(
        "--law",
        choices=LAWS,
        help=f"how strength becomes push. {laws_explained()} (default: the adapter's own way, as it was calibrated; "
        "without a calibration odds for a positive adapter, nft for a policy)",
    )
    parser.add_argument("--cfg", type=float, default=1.0, help="classifier-free guidance scale; 1 is off (default)")
    parser.add_argument("--n", type=int, default=600, help="pictures per strength (default: 600, 100 per category)")
    parser.add_argument(
        "--steps", type=int, default=14, help="denoising steps (default: 14); below 10 shapes get ragged"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument("--out", type=Path, help="also write the scores to this JSON file")


def run(args: argparse.Namespace) -> int:
    """Sample, score and print the table by category."""
    import torch

    from nft_pipeline import DiffusionNFTPipeline

    from ..devices.precision import choose_precision
    from ..shapes.prompts import HELD_OUT_SEED
    from ..shapes.score import CATEGORIES, shapes_eval_prompts
    from .measure import Workload

    if args.n < len(CATEGORIES):
        raise ValueError(f"--n is {args.n}, expected at least {len(CATEGORIES)}, one picture a category")
    prompts = shapes_eval_prompts(args.n, seed=HELD_OUT_SEED)
    texts = [prompt.text() for _, prompt in prompts]
    pipe = DiffusionNFTPipeline.from_pretrained(args.model, nft_adapter=args.adapter)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    call: dict[str, Any] = {**pipe.call_defaults, "num_inference_steps": args.steps, "guidance_scale": args.cfg}
    dtype, _ = choose_precision("auto", pipe.transformer.device)
    work = Workload(texts, n=args.n, seed=args.seed, batch=128, call=call, dtype=dtype)
    results: dict[str, dict[str, Any]] = {}
    for strength in args.strengths if args.adapter else [0.0]:
        steering = {"nft_strength": strength, "nft_law": args.law} if args.adapter else {}
        pictures = work.pictures(pipe, f"strength {strength:g}", **steering)
        results[f"strength {strength:g}"] = shapes_eval_scores(pictures, prompts)
    print(scores_table(results))
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def shapes_eval_scores(pictures: Any, prompts: Any) -> dict[str, Any]:
    """ShapesEval of pictures against (category, Prompt) pairs.

    Returns:
        "overall": mean over categories of the share of correct pictures; "categories": that share by category;
        "score": mean fraction of named attributes that are right; "quality": mean template overlap; "n".
    """
    import numpy as np

    from ..shapes.score import judge

    judged = [judge(picture, prompt) for picture, (_, prompt) in zip(pictures, prompts, strict=True)]
    by_category: dict[str, list[bool]] = {}
    for judgement, (category, _) in zip(judged, prompts, strict=True):
        by_category.setdefault(category, []).append(judgement.correct)
    categories = {category: float(np.mean(correct)) for category, correct in by_category.items()}
    return {
        "overall": float(np.mean(list(categories.values()))),
        "categories": categories,
        "score": float(np.mean([judgement.score for judgement in judged])),
        "quality": float(np.mean([judgement.quality for judgement in judged])),
        "n": len(judged),
    }


def scores_table(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table with one column per setting."""
    from ..shapes.score import CATEGORIES
    from .report import markdown

    rows = [
        [category, *(f"{r['categories'].get(category, float('nan')):.3f}" for r in results.values())]
        for category in CATEGORIES
    ]
    rows.append(["**ShapesEval**", *(f"**{r['overall']:.3f}**" for r in results.values())])
    rows.append(["attributes right", *(f"{r['score']:.3f}" for r in results.values())])
    rows.append(["picture quality", *(f"{r['quality']:.3f}" for r in results.values())])
    return markdown(["category", *results], rows)
