"""`diffusion-nft pull OWNER/NAME FOLDER`: an adapter from the Hub, byte for byte."""

from __future__ import annotations

import argparse

HELP = """\
Fetch an adapter from the Hub into a folder. It is checked, and is byte for byte what its author uploaded. You need this
only to look at the files or to change them: `sample` and from_pretrained take the repository's name as it is."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft pull`."""
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository")
    parser.add_argument("folder", metavar="FOLDER", help="folder to write; an older adapter in it is replaced")
    parser.add_argument(
        "--revision",
        metavar="REV",
        help="branch, tag or commit (default: the newest of main). Give a commit when a result has to be reproducible",
    )
    parser.add_argument(
        "--subfolder",
        metavar="NAME",
        help="folder of the repository that holds the adapter (default: the repository itself)",
    )


def run(args: argparse.Namespace) -> int:
    """Pull."""
    from ..pull import pull

    print(pull(args.repo, args.folder, revision=args.revision, subfolder=args.subfolder))
    return 0
