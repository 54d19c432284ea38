"""`diffusion-nft compare A B`: two runs side by side on one page."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = """\
Put two training runs side by side on one HTML page, with everything inside it: the settings that differ, the curves in
the same panels, the last sweeps in one table, and the sample grids of the same steps beside each other."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft compare`."""
    parser.add_argument("first", metavar="A", type=Path, help="the folder of a run, such as runs/NAME")
    parser.add_argument("second", metavar="B", type=Path, help="the folder of another run")
    parser.add_argument("--out", type=Path, default=Path("compare.html"), help="the page (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    from .compare import write_comparison

    print(f"comparison written to {write_comparison(args.first, args.second, args.out)}")
    return 0
