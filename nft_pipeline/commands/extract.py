"""`diffusion-nft extract TUNED BASE`: a LoRA out of a fully tuned model, and how much of the tuning it misses."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..adapters.extract import Extraction

HELP = """\
Make a policy adapter of a fully tuned model, such as SRPO's and DanceGRPO's checkpoints: of each layer's change against
the base model the part that has the given rank. Then the tuning can be dialled like any LoRA. What that rank misses is
measured in each layer and said; norms and biases, which no LoRA holds, are counted.
Layers are read one at a time, so no model has to fit into memory.

  diffusion-nft extract diffusion_pytorch_model.safetensors black-forest-labs/FLUX.1-dev --rank 128 --out srpo
  diffusion-nft sample "a red cube" --model black-forest-labs/FLUX.1-dev --adapter srpo"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft extract`."""
    parser.add_argument(
        "tuned",
        metavar="TUNED",
        help="the tuned model: a folder in diffusers' format, its denoiser's .safetensors file, or a Hub id",
    )
    parser.add_argument(
        "base", metavar="BASE", help="the model it was tuned from: a folder in diffusers' format, or a Hub id"
    )
    parser.add_argument(
        "--rank",
        type=int,
        default=64,
        metavar="R",
        help="rank of the LoRA (default: %(default)s). Raise it when the error is large; the adapter grows with it",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="folder to write; an adapter in it is replaced"
    )
    parser.add_argument("--name", help="name of the adapter (default: the tuned model's)")
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="where singular values are computed: cpu, cuda, cuda:1 (default: auto, a GPU if there is one)",
    )


def run(args: argparse.Namespace) -> int:
    """Extract, write, and say what was lost."""
    from ..adapters.extract import extract
    from ..adapters.write import write_adapter
    from ..sampling import pick_device

    def progress(module: str, done: int, count: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done + 1} of {count} layers\x1b[K", end="", file=sys.stderr, flush=True)

    result = extract(
        args.tuned, args.base, args.rank, name=args.name, device=pick_device(args.device), progress=progress
    )
    report = result.facts | {"layer_errors": result.errors, "norms_left_out": result.left_out}
    files = {"extract.json": (json.dumps(report, indent=2) + "\n").encode()}
    folder = write_adapter(args.out, result.adapter, files)
    print("\n".join(lines(result)))
    print(f"wrote {folder}; extract.json in it has every layer")
    return 0


def lines(result: Extraction) -> list[str]:
    """What was extracted and what was lost, for people."""
    facts, config = result.facts, result.adapter.config
    worst = sorted(result.errors, key=lambda module: -result.errors[module])[:3]
    text = [
        f"{config.denoiser}: {facts['layers']} layers at rank {config.rank}, {facts['unchanged']} unchanged",
        f"error: {facts['error']:.2%} of the layers' change is missed (a layer's median {facts['median_error']:.2%}; "
        f"most in {', '.join(f'{module} {result.errors[module]:.2%}' for module in worst)})",
    ]
    if result.left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in facts["left_out"].items())
        text.append(
            f"left out: {kinds}, which were tuned too and no LoRA holds; they are {facts['share_left_out']:.2%} of the "
            f"whole change by squares, such as {', '.join(list(result.left_out)[:3])}"
        )
    return text
