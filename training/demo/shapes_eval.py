"""ShapesEval: the shapes model on prompts of six categories, each picture checked against its prompt from pixels."""

from __future__ import annotations

import argparse
import json
from typing import Any


def run_shapes_eval(args: argparse.Namespace) -> int:
    """`diffusion-nft eval` without prompts of one's own: sample, score and print a column for each strength.

    Args:
        args: the command's.

    Raises:
        ValueError: fewer pictures than categories.
    """
    import torch

    from nft_pipeline import DiffusionNFTPipeline

    from ..devices.precision import choose_precision
    from ..shapes.prompts import HELD_OUT_SEED
    from ..shapes.score import CATEGORIES, shapes_eval_prompts
    from .measure import Workload

    n, steps = 600 if args.n is None else args.n, 14 if args.steps is None else args.steps
    if n < len(CATEGORIES):
        raise ValueError(f"--n is {n}, expected at least {len(CATEGORIES)}, one picture a category")
    prompts = shapes_eval_prompts(n, seed=HELD_OUT_SEED)
    texts = [prompt.text() for _, prompt in prompts]
    pipe = DiffusionNFTPipeline.from_pretrained(args.model or "shapes", nft_adapter=args.adapter)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu")
    cfg = 1.0 if args.cfg is None else args.cfg
    call: dict[str, Any] = {**pipe.call_defaults, "num_inference_steps": steps, "guidance_scale": cfg}
    dtype, _ = choose_precision("auto", pipe.transformer.device)
    work = Workload(texts, n=n, seed=args.seed, batch=128, call=call, dtype=dtype)
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
