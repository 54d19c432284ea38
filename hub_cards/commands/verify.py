"""`diffusion-nft verify ADAPTER`: every fault of an adapter, a line each."""

from __future__ import annotations

import argparse

HELP = """\
Say everything that is wrong with an adapter, each fault in a line that says what to do: damaged or missing files,
numbers that contradict each other, a card without a licence, a pickle, a private path. Exit code 0 if it is sound, 1 if
not. Look here before you share an adapter, or when one from somebody else behaves oddly."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft verify`."""
    parser.add_argument("adapter", metavar="ADAPTER", help="a folder, a shipped name or a Hub id (owner/name)")
    parser.add_argument("--revision", metavar="REV", help="Hub only: branch, tag or commit (default: the newest)")
    parser.add_argument("--subfolder", metavar="NAME", help="folder in it that holds the adapter (default: itself)")
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="load this base model too and check every layer's name and shape against it (default: the adapter alone). "
        "Give it when the adapter will not load",
    )
    parser.add_argument(
        "--no-card",
        action="store_true",
        help="accept a missing README.md and a missing file for ComfyUI (default: both are faults); for use before "
        "`push`, which adds them",
    )


def run(args: argparse.Namespace) -> int:
    """Verify."""
    from ..verify import verify

    base = None
    if args.base is not None:
        import torch

        from nft_pipeline.adapters.foreign.adapter import denoiser_of
        from nft_pipeline.pipeline import DiffusionNFTPipeline

        # Names and shapes are compared and no numbers, so half of the memory does.
        _, base = denoiser_of(DiffusionNFTPipeline.from_pretrained(args.base, dtype=torch.bfloat16))
    where = {"revision": args.revision, "subfolder": args.subfolder}
    faults = verify(args.adapter, **where, base=base, card=not args.no_card)
    for fault in faults:
        print(fault)
    print(f"{len(faults)} fault{'s' * (len(faults) != 1)}" if faults else "no fault found")
    return 1 if faults else 0
