"""`diffusion-nft rate FOLDER`: like and dislike pictures on a local page."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nft_pipeline.training.rewards.folders.rating import Ratings

HELP = """\
Like and dislike the pictures of a folder on a page in your browser: press l or d, u to undo, arrows to move. Ratings go
into metadata.jsonl beside the pictures at once, which is what offline training reads; stop with Ctrl-C and come back
whenever you like. The page is served to this machine only."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft rate`."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the pictures; folders in it are included")
    parser.add_argument(
        "--prompt", metavar="TEXT", help="for pictures that have no prompt of their own (default: an error names them)"
    )
    parser.add_argument(
        "--by",
        metavar="ADAPTER",
        help="show the pictures first of which this adapter's alpha head is least sure (default: by their names). So "
        "one trains on what is rated, rates what the adapter cannot tell, and trains again; it needs the base model",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="with --by: the base model (default: the one that the adapter names); a folder, a Hub id or one file",
    )
    parser.add_argument("--device", default="auto", help="with --by: auto (CUDA if there is one), cpu, cuda, ...")
    parser.add_argument(
        "--port", type=int, default=0, help="port of the page (default: a free one). Set it for a tunnel or a bookmark"
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="only print the address (default: also open it in the browser)"
    )


def _most_useful_first(args: argparse.Namespace, ratings: Ratings) -> list[str]:
    """What is rated already, then what is most worth rating."""
    from nft_pipeline.adapter import read_adapter
    from nft_pipeline.pipeline import DiffusionNFTPipeline
    from nft_pipeline.sampling import pick_device, pick_dtype
    from nft_pipeline.training.dial.useful import most_useful_first

    device = pick_device(args.device)
    model = args.model or read_adapter(args.by).config.base_model.id
    pipe = DiffusionNFTPipeline.from_pretrained(model, dtype=pick_dtype("auto", device))
    pipe.to(device)
    pipe.load_nft_adapter(args.by)
    left = [picture for picture in ratings.pictures if ratings.liked[picture] is None]
    rated = [picture for picture in ratings.pictures if ratings.liked[picture] is not None]
    return rated + (most_useful_first(pipe, "default", args.folder, left, ratings.prompts) if left else [])


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C, then say how many are rated."""
    from nft_pipeline.training.rewards.folders.rating import Ratings, rating_server

    ratings = Ratings(args.folder, args.prompt, Path(args.by).name if args.by else None)
    if args.by:
        ratings.pictures = _most_useful_first(args, ratings)
    with rating_server(ratings, args.port) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        print(f"Rate {len(ratings.pictures)} pictures at {address} (Ctrl-C ends it)", flush=True)
        if not args.no_browser:
            import webbrowser

            webbrowser.open(address)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    liked = list(ratings.liked.values())
    print(f"{liked.count(True)} liked, {liked.count(False)} disliked, {liked.count(None)} not rated")
    return 0
