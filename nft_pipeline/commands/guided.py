"""Options that commands which draw share: the base model, somebody else's LoRA, the mode, guidance scale and cost."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping
from typing import Any

from ..models import shipped_adapters_of
from ..modes import MODES


def add_model_argument(group: argparse._ActionsContainer) -> None:
    """--model."""
    group.add_argument(
        "--model",
        default="shapes",
        metavar="NAME",
        help="base model: the shipped 'shapes' or 'emoji', a diffusers folder, a Hub id or a checkpoint in one file "
        "(default: %(default)s). It must be the one the adapter was trained on",
    )


def default_adapters(model: str) -> list[str]:
    """The adapters that a command takes where no --adapter is given: those shipped for the model, the first of them
    where it takes but one.

    Args:
        model: what --model says.

    Raises:
        ValueError: there are none.
    """
    adapters = shipped_adapters_of(model)
    if not adapters:
        raise ValueError(f"no shipped adapter is for the model {model!r}; give one with --adapter")
    return adapters


def add_foreign_arguments(group: argparse._ActionsContainer) -> None:
    """What a LoRA of another tool does not say about itself."""
    group.add_argument(
        "--kind",
        choices=("policy", "positive"),
        help="only for a LoRA that another tool made, which does not say it itself: policy if the LoRA is the trained "
        "model, as in every DiffusionNFT checkpoint (default: what the adapter says)",
    )
    group.add_argument(
        "--beta",
        type=float,
        metavar="BETA",
        help="only with --kind: the beta of its training, 1 or 0.1 in the official DiffusionNFT configs (default: what "
        "the adapter says). It names the tilt of strength 1 and changes no picture",
    )
    group.add_argument(
        "--use-old",
        action="store_true",
        help="only with --kind: take the adapter called old beside the checkpoint as v_old (default: the base model). "
        "Give it to see what the last round of training did and not what all of them did",
    )
    group.add_argument(
        "--without-text-encoder",
        action="store_true",
        help="only with --kind: leave out the LoRA's layers of text encoders, which kohya trains by default and which "
        "cannot be dialled (default: such a file is refused)",
    )


def add_mode_argument(group: argparse._ActionsContainer) -> None:
    """--mode."""
    group.add_argument(
        "--mode",
        choices=MODES,
        help="how the forwards are spent (default: what the adapter's calibration found best, else two_pass). "
        + " ".join(f"{name}: {mode.help}." for name, mode in MODES.items()),
    )


def add_cfg_argument(group: argparse._ActionsContainer) -> None:
    """--cfg."""
    group.add_argument(
        "--cfg",
        type=float,
        metavar="SCALE",
        help="classifier-free guidance scale of the base pipeline, 1 is off (default: what the model sets, 1 for "
        "shapes). It doubles the cost of a step; begin with the scale `diffusion-nft info` gives for the adapter. "
        "FLUX.1 and Qwen-Image take it as the guidance they were distilled with, which costs nothing",
    )


def add_cost_arguments(group: argparse._ActionsContainer) -> None:
    """--steps, --width, --height, --device and --dtype."""
    group.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="denoising steps, at least 1 (default: what the model sets, 14 for shapes). Fewer is faster and rougher; "
        "raise it if strong guidance leaves artefacts",
    )
    for side in ("width", "height"):
        group.add_argument(
            f"--{side}",
            type=int,
            metavar="PIXELS",
            help=f"{side} of the pictures (default: what the model draws at). Smaller is faster; far from the size the "
            "model was trained at it draws worse",
        )
    group.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:1, mps (default: auto, a GPU if there is one). Give cpu if the GPU is busy",
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="number format of the weights (default: auto, bfloat16 on GPUs that have it, else float32). Take "
        "float32 to compare numbers between machines",
    )


def foreign(args: argparse.Namespace) -> dict[str, Any]:
    """What was said about a LoRA of another tool, as arguments of `load_nft_adapter`."""
    return {name: getattr(args, name) for name in ("kind", "beta", "use_old", "without_text_encoder")}


_STOCK = {"cfg": "guidance_scale", "steps": "num_inference_steps", "width": "width", "height": "height"}


def stock_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What was said of the stock call, --cfg, --steps, --width and --height, by the names of its arguments."""
    stock = {name: getattr(args, option) for option, name in _STOCK.items()}
    return {name: value for name, value in stock.items() if value is not None}


def check_stock_arguments(stock: Mapping[str, Any], pipe: Any) -> None:
    """Refuse what a guided pipeline's stock call does not take: pictures have no --width where sounds are drawn.

    Raises:
        ValueError: naming the options.
    """
    known = inspect.signature(pipe._nft_stock_class.__call__).parameters
    options = [f"--{option}" for option, name in _STOCK.items() if name in stock and name not in known]
    if options:
        raise ValueError(f"{pipe._nft_stock_class.__name__} has no use for {' and '.join(options)}; leave that out")
