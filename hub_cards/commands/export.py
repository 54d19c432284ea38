"""`diffusion-nft export ADAPTER FORM`: the LoRA of an adapter as other tools want it."""

from __future__ import annotations

import argparse
from pathlib import Path

from nft_pipeline.laws import LAWS, laws_explained

HELP = """\
Write an adapter's LoRA for other tools. comfyui: one file with the whole adapter, for the diffusion-nft nodes. kohya:
lora_down and lora_up, for kohya's scripts and tools that read their files. peft: a folder for PeftModel. merged: a
plain LoRA at one fixed strength, for tools that know nothing of reward guidance; it has no dial and only comes near to
what guidance does.

With --baked instead of FORM, the dial itself is trained into one LoRA: a new adapter whose plain LoRA weight is the
dial, in one forward per step and in any tool that loads LoRAs. This needs the base model and takes about as long as a
short training run. No reward is needed.

  diffusion-nft export shapes-warm comfyui
  diffusion-nft export shapes-warm --baked --out adapters"""


FORMS = ("comfyui", "kohya", "peft", "merged")
_OF_BAKING = ("prompts", "steps", "rank", "seed", "device")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft export`."""
    parser.add_argument("adapter", metavar="ADAPTER", help="a folder, a shipped name or a Hub id (owner/name)")
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument(
        "form", nargs="?", metavar="FORM", choices=FORMS, help=f"the tool to write for: {', '.join(FORMS)}"
    )
    form.add_argument(
        "--baked",
        action="store_true",
        help="instead of FORM: train the dial of a positive adapter into one LoRA, and write it as the adapter "
        "NAME-baked in a folder of that name",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("."),
        metavar="FOLDER",
        help="folder to write into (default: the current one); files of the same names in it are replaced",
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
        help="merged only, of a positive adapter (default: the weight that its calibration found, or nft without one). "
        f"{laws_explained()}",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        metavar="A",
        help="merged only, of a positive adapter: the one alpha that stands for all (default: its base rate)",
    )
    baked = parser.add_argument_group("only with --baked")
    baked.add_argument(
        "--prompts",
        metavar="NAME",
        help="prompts to draw the base model's pictures with: a text file with one prompt per line, a built-in list or "
        "module:function (default: those that the adapter was trained on)",
    )
    baked.add_argument("--steps", type=int, metavar="N", help="optimiser steps (default: 384)")
    baked.add_argument(
        "--rank", type=int, metavar="R", help="rank of the LoRA, at least the adapter's (default: the adapter's)"
    )
    baked.add_argument("--seed", type=int, metavar="N", help="of the pictures and of the training (default: 0)")
    baked.add_argument("--device", help="auto, cpu or cuda; auto takes CUDA if there is one (default: auto)")


def run(args: argparse.Namespace) -> int:
    """Export."""
    from nft_pipeline.adapter import read_adapter
    from nft_pipeline.files.atomic import atomic_write_bytes

    from ..export import export

    of_baking = {name: getattr(args, name) for name in _OF_BAKING if getattr(args, name) is not None}
    if of_baking and not args.baked:
        raise ValueError(f"--{', --'.join(of_baking)} goes with --baked only; the form {args.form} trains nothing")
    adapter = read_adapter(args.adapter, revision=args.revision, subfolder=args.subfolder)
    if args.baked:
        if args.strength is not None or args.alpha is not None:
            raise ValueError("--strength and --alpha are for the form merged; a baked adapter has every strength")
        from nft_pipeline.training.run.bake import bake

        bake(adapter, args.out / f"{adapter.config.name}-baked", **of_baking)
        return 0
    files = export(adapter, args.form, strength=args.strength, law=args.law, alpha=args.alpha)
    for name, data in files.items():
        print(atomic_write_bytes(args.out / name, data))
    return 0
