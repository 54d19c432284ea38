"""`diffusion-nft rate FOLDER`: like and dislike pictures on a local page."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

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
        "--port", type=int, default=0, help="port of the page (default: a free one). Set it for a tunnel or a bookmark"
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="only print the address (default: also open it in the browser)"
    )


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C, then say how many are rated."""
    from nft_pipeline.training.rewards.folders.rating import Ratings, rating_server

    ratings = Ratings(args.folder, args.prompt)
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
