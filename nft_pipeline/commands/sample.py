"""`diffusion-nft sample`: the same prompts and the same noise at several strengths, side by side in one picture."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..grid import CELL, SMALL, labelled_grid, scale_for
from ..laws import COMBINATIONS, LAWS, combinations_explained, laws_explained
from ..modes import GUIDE
from .columns import Columns, liked
from .guided import (
    add_cfg_argument,
    add_cost_arguments,
    add_foreign_arguments,
    add_mode_argument,
    add_model_argument,
    check_stock_arguments,
    default_adapters,
    foreign,
    stock_arguments,
)
from .particles import add_particles_argument, check_particles, draw_groups, survivors_words

if TYPE_CHECKING:
    from ..engine.stats import NFTStats

HELP = """\
Draw prompts at several strengths into one labelled PNG: a row per prompt and seed, a column per strength. Every column
starts from the same noise, so what differs along a row is guidance and nothing else.

  diffusion-nft sample "a circle left of a cross"
  diffusion-nft sample "a ring" "two squares" --strengths 0 1 2 4 --out strengths.png
  diffusion-nft sample "cat face on pink" --model emoji
  diffusion-nft sample "a ring" --particles 16 --strengths 1
  diffusion-nft sample "a ring" --seeds 0 1 2 3 4 5 6 7 --rate 0.5 0.7 0.9 --reward warm --out rates.png

Above each column stands the share of pictures of these prompts that will be liked, as far as the adapter's calibration
knows; with --reward also the share that was liked."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft sample`."""
    what = parser.add_argument_group("what to draw")
    what.add_argument(
        "prompts", nargs="+", metavar="PROMPT", help="one or more prompts, each in quotes, before options"
    )
    add_model_argument(what)
    what.add_argument(
        "--adapter",
        metavar="NAME",
        help="adapter: a shipped name, a folder or a Hub id (default: the first that is shipped for the model, "
        "shapes-warm or emoji-3d); a LoRA that another tool made may also be a .safetensors file, and needs --kind and "
        "--beta",
    )
    what.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="NAME",
        help="one more adapter to guide by, at the same strength; give it once for each (default: none). --combine "
        "says what they mean together",
    )
    add_foreign_arguments(what)
    what.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        metavar="N",
        help="seeds of the starting noise, one row per seed (default: 0 1 2 3, or 0 with --particles). More rows tell "
        "a real effect from luck; with several prompts one seed is often enough",
    )

    how = parser.add_argument_group("guidance")
    how_far = how.add_mutually_exclusive_group()
    how_far.add_argument(
        "--strengths",
        type=float,
        nargs="+",
        default=[0.0, 0.5, 1.0, 2.0],
        metavar="S",
        help="strengths to draw at, one column per strength: 0 is the base model, 1 is the adapter as its author "
        "shipped it, a negative number pushes away from the reward (default: 0 0.5 1 2; useful range -2 to 4). Raise "
        "it when the effect is too weak, lower it when colours burn or pictures look alike",
    )
    how_far.add_argument(
        "--rate",
        type=float,
        nargs="+",
        metavar="P",
        help="draw at the strengths at which these shares of pictures are liked, each between 0 and 1, instead of at "
        "--strengths (default: none). It goes through the adapter's calibration, over the prompts of which the share "
        "is a mean; what the adapter does not reach is refused, with the share that it does",
    )
    how.add_argument(
        "--law",
        choices=LAWS,
        help="how strength becomes push (default: the adapter's own way, as it was calibrated; without a calibration "
        f"odds for a positive adapter, nft for a policy). {laws_explained()} A law of your own promises nothing",
    )
    how.add_argument(
        "--interval",
        type=float,
        nargs=2,
        default=[0.0, 1.0],
        metavar=("LOW", "HIGH"),
        help="noise levels at which to guide, from 0 (picture) to 1 (pure noise) (default: 0 1). LOW 0.2 keeps "
        "guidance away from fine texture and saves the second forward of the steps below it; HIGH 0.8 leaves the "
        "layout to the base model",
    )
    add_mode_argument(how)
    how.add_argument(
        "--combine",
        choices=COMBINATIONS,
        default="all",
        help=f"with --also: what several adapters mean (default: %(default)s). {combinations_explained()} any does "
        "not take --law nft",
    )
    how.add_argument(
        "--candidates",
        type=int,
        metavar="K",
        help="early choice: try K noises for each picture and keep the one with the highest alpha after a few steps "
        "(default: 1, no choice). 8 gives many more liked pictures for about three times the steps, also at strength "
        "0, where they are the base model's own; it needs an adapter with an alpha head",
    )
    how.add_argument(
        "--choose-after",
        type=int,
        metavar="STEP",
        help="with --candidates: the step after which they are compared (default: a seventh of the steps). Raise it if "
        "the choice is often wrong; each of the candidates takes that many steps",
    )
    add_particles_argument(how)
    how.add_argument(
        "--guide",
        choices=GUIDE,
        default="both",
        help="with --cfg above 1: guide both predictions, or the conditional one alone, which is cheaper and pushes "
        "--cfg times as hard (default: %(default)s)",
    )
    how.add_argument(
        "--cap",
        type=float,
        metavar="FRACTION",
        help="the largest fraction by which a step may move the predicted picture (default: no limit). Give 0.3 or so "
        "when single steps burn; the table below the grid shows the largest push",
    )
    add_cfg_argument(how)

    cost = parser.add_argument_group("cost")
    cost.add_argument(
        "--batch",
        type=int,
        default=8,
        metavar="N",
        help="pictures drawn at once, at least 1 (default: %(default)s). Reduce to 4, 2, 1 if you run out of memory",
    )
    add_cost_arguments(cost)

    out = parser.add_argument_group("output")
    out.add_argument(
        "--reward",
        metavar="NAME",
        help="score the pictures with this reward and say the measured share of each column beside the promised one "
        "(default: no). Give the reward that the adapter was calibrated on, which `diffusion-nft info` names; a few "
        "pictures measure little, so add seeds",
    )
    out.add_argument(
        "--out", type=Path, default=Path("grid.png"), metavar="FILE", help="the PNG to write (default: %(default)s)"
    )
    out.add_argument(
        "--scale",
        type=int,
        metavar="N",
        help=f"whole number by which the grid enlarges pictures (default: to about {CELL} px for pictures up to "
        f"{SMALL} px, no enlarging above that)",
    )


def run(args: argparse.Namespace) -> int:
    """Draw, write the grid, print what guidance did at each strength."""
    check(args)
    if args.adapter is None:
        args.adapter = default_adapters(args.model)[0]
    import torch

    from ..files.atomic import atomic_write_bytes
    from ..pipeline import DiffusionNFTPipeline
    from ..sampling import draw, pick_device, pick_dtype

    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    pipe = DiffusionNFTPipeline.from_pretrained(args.model, dtype=dtype)
    pipe.load_nft_adapter(args.adapter, **foreign(args))
    for number, name in enumerate(args.also, start=1):
        pipe.load_nft_adapter(name, name=f"also_{number}")
    pipe = pipe.to(device)
    stock = stock_arguments(args)
    check_stock_arguments(stock, pipe)
    seeds = args.seeds or ([0, 1, 2, 3] if args.particles is None else [0])
    rows = [(prompt, seed) for prompt in args.prompts for seed in seeds]
    plan = Columns.of(pipe, args, stock, len(rows))
    each = args.particles or 1
    print(f"{len(rows) * each} rows x {len(plan.strengths)} strengths on {device}, {str(dtype).removeprefix('torch.')}")
    survivors: list[list[int]] = []
    with torch.inference_mode():
        if args.particles is not None:
            columns, stats, survivors = draw_groups(pipe, rows, plan.strengths, args.particles, **stock)
        else:
            columns, stats = draw(
                pipe,
                rows,
                plan.strengths,
                batch=args.batch,
                nft_law=args.law,
                nft_interval=tuple(args.interval),
                nft_mode=args.mode,
                nft_combine=args.combine,
                nft_guide=args.guide,
                nft_cap=args.cap,
                nft_candidates=args.candidates,
                nft_choose_after=args.choose_after,
                **stock,
            )
    texts = [prompt for prompt, _ in rows for _ in range(each)]
    measured = [None if args.reward is None else liked(column, texts, args.reward) for column in columns]
    pictures = [list(row) for row in zip(*columns, strict=True)]
    grid = labelled_grid(
        pictures,
        row_labels(args.prompts, seeds, each),
        [plan.label(place, share) for place, share in enumerate(measured)],
        scale=args.scale if args.scale is not None else scale_for(pictures[0][0].width),
        title=title(args),
    )
    buffer = io.BytesIO()
    grid.save(buffer, format="PNG")
    atomic_write_bytes(args.out, buffer.getvalue())
    print(stats_table(plan.strengths, stats))
    for place, share in enumerate(measured):
        if words := plan.words(place, share):
            print(words)
    for strength, group in zip(plan.strengths, survivors, strict=False):
        print(survivors_words(strength, group, each))
    print(f"wrote {args.out} ({grid.width} x {grid.height} px)")
    return 0


def check(args: argparse.Namespace) -> None:
    """Refuse what would fail only after the sampling.

    Raises:
        ValueError: not a PNG, no steps, an empty batch, a scale below 1, or an option that --particles has no use for.
    """
    if args.out.suffix.lower() != ".png":
        raise ValueError(f"--out is {str(args.out)!r}; the grid is a PNG, so give a name that ends in .png")
    for name in ("steps", "batch", "scale"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; expected a whole number of at least 1")
    check_particles(args)


def stats_table(strengths: Sequence[float], stats: Sequence[Sequence[NFTStats]]) -> str:
    """What guidance did, one line per strength; with several adapters alpha and scale are means over them.

    Args:
        strengths: one per line.
        stats: for each strength the stats of its batches; may be empty.
    """
    lines = ["strength  alpha first -> last step  mean scale  mean push  largest push  denoiser forwards per step"]
    for strength, batches in zip(strengths, stats, strict=True):
        if not batches or not batches[0].steps:
            lines.append(f"{strength:8g}  {'-':>25}  {'-':>10}  {'-':>9}  {'-':>12}  {'-':>25}")
            continue
        import torch

        alpha = torch.cat([batch.alphas.mean(dim=0) for batch in batches], dim=1).mean(dim=1)
        scale = torch.cat([batch.scales.mean(dim=0) for batch in batches], dim=1)
        push = torch.cat([batch.push for batch in batches], dim=1)
        push = push[~push.isnan()]  # not known where one forward did all
        pushes = (f"{push.mean().item():.3f}", f"{push.max().item():.3f}") if len(push) else ("-", "-")
        read = alpha[~alpha.isnan()]
        seen = f"{read[0].item():.3f} -> {read[-1].item():.3f}" if len(read) else "not read"
        forwards = sum(batch.forwards for batch in batches) / sum(batch.steps for batch in batches)
        lines.append(
            f"{strength:8g}  {seen:>25}  {scale.mean().item():10.3f}  {pushes[0]:>9}  {pushes[1]:>12}  {forwards:25.2f}"
        )
    return "\n".join(lines)


def row_labels(prompts: Sequence[str], seeds: Sequence[int], each: int = 1) -> list[str]:
    """One label per row: prompt, seed or both, whichever differs; with `each` pictures of a seed also which it is."""
    if len(prompts) == 1:
        labels = [f"seed {seed}" for seed in seeds]
    elif len(seeds) == 1:
        labels = list(prompts)
    else:
        labels = [f"{prompt}\nseed {seed}" for prompt in prompts for seed in seeds]
    return labels if each == 1 else [f"{label}, {place}" for label in labels for place in range(1, each + 1)]


def title(args: argparse.Namespace) -> str:
    """The prompt if there is but one, and what the pictures were made with."""
    sources = " + ".join(_last_part(source) for source in (args.model, args.adapter, *args.also))
    law = "" if args.law is None else f", {args.law} law"
    made_with = f"{sources}{law}" + (f", {args.combine} of them" if args.also else "")
    return f"{args.prompts[0]}  ({made_with})" if len(args.prompts) == 1 else made_with


def _last_part(source: str) -> str:
    # A model may be a folder; its path is nobody's business in a picture that gets shared.
    return source.replace("\\", "/").rstrip("/").rpartition("/")[2]
