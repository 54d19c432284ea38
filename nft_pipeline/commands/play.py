"""`diffusion-nft play`: a page on this machine with the dial to play with."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import time
from pathlib import Path

from ..models import example_prompts
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

HERE = "127.0.0.1"
HELP = """\
Open a page with a prompt, a seed and a strength slider that redraws as it moves, the base model's picture beside the
guided one, and the chance that the picture will be liked. Pictures that you like and dislike there are kept in a folder
that `train` takes. Ctrl-C ends it. The page is served to this machine only.

  diffusion-nft play
  diffusion-nft play "a ring" "two squares" --adapter shapes-follow --likes my_taste
  diffusion-nft play "a lighthouse" --model stabilityai/stable-diffusion-3.5-medium --adapter someone/sd35m-nft-ocr"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft play`."""
    what = parser.add_argument_group("what to draw")
    what.add_argument(
        "prompts",
        nargs="*",
        metavar="PROMPT",
        help="prompts to begin with and to choose among, each in quotes (default: examples that the model brings)",
    )
    add_model_argument(what)
    what.add_argument(
        "--adapter",
        action="append",
        metavar="NAME",
        help="adapter: a shipped name, a folder or a Hub id, or somebody else's LoRA file with --kind and --beta; give "
        "it once for each, and the page lets you choose (default: all that are shipped for the model)",
    )
    add_foreign_arguments(what)
    add_mode_argument(what)
    add_cfg_argument(what)

    likes = parser.add_argument_group("likes")
    likes.add_argument(
        "--likes",
        type=Path,
        default=Path("likes"),
        metavar="FOLDER",
        help="where pictures go that you like or dislike, with metadata.jsonl as `rate` writes it; made with the first "
        "of them (default: %(default)s). Give a folder of its own for each taste",
    )

    where = parser.add_argument_group("page")
    where.add_argument(
        "--port", type=int, metavar="N", help="port of the page (default: a free one from 7860 on). Set it for a tunnel"
    )
    where.add_argument(
        "--share",
        action="store_true",
        help="also open the page to everybody who knows its address, through a tunnel of gradio's (default: this "
        "machine only). Whoever has the address draws on your machine and likes into your folder",
    )
    where.add_argument(
        "--no-browser", action="store_true", help="only print the address (default: also open it in the browser)"
    )

    add_cost_arguments(parser.add_argument_group("cost"))


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C, then say how many pictures are liked."""
    adapters = args.adapter or default_adapters(args.model)
    if args.port is not None:
        _refuse_taken(args.port)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    from ..play.likes import count
    from ..play.page import build, launch
    from ..play.studio import Studio
    from ..sampling import check_draws_pictures

    count(args.likes)  # refuses a list that nothing could be added to
    studio = Studio.open(
        args.model,
        adapters,
        device=args.device,
        dtype=args.dtype,
        foreign=foreign(args),
        mode=args.mode,
        stock=stock_arguments(args),
    )
    check_stock_arguments(studio.stock, studio.pipe)
    check_draws_pictures(studio.pipe)
    page = build(studio, args.prompts or example_prompts(args.model), args.likes)
    where = {"server_name": HERE, "server_port": args.port}
    address = launch(page, **where, share=args.share, inbrowser=not args.no_browser)
    print(f"Play at {address} (Ctrl-C ends it); likes go to {args.likes}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
    page.close(verbose=False)
    print(count(args.likes))
    return 0


def _refuse_taken(port: int) -> None:
    """Raise OSError for a port that cannot be had, before the model is loaded."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HERE, port))
        except (OSError, OverflowError) as error:
            raise OSError(f"port {port} cannot be had; give another --port, or none for a free one") from error
