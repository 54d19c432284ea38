"""`diffusion-nft export ADAPTER FORM`: the LoRA of an adapter as other tools want it."""

from __future__ import annotations

import argparse
from pathlib import Path

from nft_pipeline.laws import LAWS, laws_explained

HELP = """\
Write an adapter's LoRA for other tools. comfyui: one file with the whole adapter, for the diffusion-nft nodes. kohya:
lora_down and lora_up, for kohya's scripts and tools that read their files. peft: a folder for PeftModel. merged: a
plain LoRA at one fixed strength, for tools that know nothing of reward guidance; it has no dial and only comes near to
what guidance does."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft export`."""
    parser.add_argument("adapter", metavar="ADAPTER", help="a folder, a shipped name or a Hub id (owner/name)")
    parser.add_argument("form", choices=("comfyui", "kohya", "peft", "merged"), help="the tool to write for")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("."),
        metavar="FOLDER",
        help="folder to write into (default: the current one); files in it are replaced",
    )
    parser.add_argument("--revision", metavar="REV", help="Hub only: branch, tag or commit (default: the newest)")
    parser.add_argument("--subfolder", metavar="NAME", help="folder in it that holds the adapter (default: itself)")
    parser.add_argument(
        "--strength",
        type=float,
        metavar="S",
        help="merged only: the strength to fix (default: what the adapter's author recommends)",
    )
    parser.add_argument(
        "--law",
        choices=LAWS,
        default="nft",
        help=f"merged only, of a positive adapter (default: %(default)s). {laws_explained()} Try odds for strengths "
        "above 2",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        metavar="A",
        help="merged only, of a positive adapter: the one alpha that stands for all (default: its base rate)",
    )


def run(args: argparse.Namespace) -> int:
    """Export."""
    from nft_pipeline.adapter import read_adapter
    from nft_pipeline.files.atomic import atomic_write_bytes

    from ..export import export

    adapter = read_adapter(args.adapter, revision=args.revision, subfolder=args.subfolder)
    files = export(adapter, args.form, strength=args.strength, law=args.law, alpha=args.alpha)
    for name, data in files.items():
        print(atomic_write_bytes(args.out / name, data))
    return 0
