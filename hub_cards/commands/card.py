"""`diffusion-nft card FOLDER OWNER/NAME`: README.md and its plots, from the adapter's own numbers."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = """\
Write the card of an adapter, README.md and its plots, from nft_config.json and run_report.json. Where the run measured
nothing, the card says "not measured". `push` does this by itself; use this to look at the card first, or, with --draw,
to draw pictures that the run has not drawn.

  diffusion-nft card runs/warm/adapter someone/warm --draw "a circle left of a cross" "two rings" --seeds 0 1"""

STRIP = (0.0, 0.5, 1.0, 1.5, 2.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft card`."""
    parser.add_argument("folder", metavar="FOLDER", help="the adapter's folder; the card is written into it")
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository it will be in; the card's examples name it")
    parser.add_argument(
        "--licence",
        metavar="ID",
        help="licence of the adapter, such as apache-2.0 (default: that of the base model's card). Give it if that "
        "card names none",
    )
    parser.add_argument(
        "--draw",
        nargs="+",
        metavar="PROMPT",
        help="draw these prompts at strengths 0, 0.5, 1, 1.5 and 2 first, in place of the samples that are there "
        "(default: draw nothing). Loads the base model",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        metavar="N",
        help="seeds of the pictures, one row per seed (default: 0)",
    )
    parser.add_argument("--model", metavar="NAME", help="base model to draw with (default: the one the adapter names)")


def run(args: argparse.Namespace) -> int:
    """Draw if asked, render, write."""
    from ..push import make_card, write_card

    if args.draw:
        from ..draw import draw_samples

        draw_samples(Path(args.folder), args.draw, args.seeds, STRIP, model=args.model)
    print(write_card(args.folder, make_card(args.folder, args.repo, licence=args.licence)))
    return 0
