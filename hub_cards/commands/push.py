"""`diffusion-nft push FOLDER OWNER/NAME`: an adapter with its card on the Hub, in one commit."""

from __future__ import annotations

import argparse

HELP = """\
Upload an adapter to the Hugging Face Hub. It is checked first, gets a card rendered from its own numbers, and is sent
in one commit, to a repository that only you can see until you say otherwise. Log in first with `hf auth login`. If the
push is cut off half-way, nothing is published; the same command given again ends in the same commit.

  diffusion-nft push runs/ocr/adapter someone/sd35m-nft-ocr --dry-run
  diffusion-nft push runs/ocr/adapter someone/sd35m-nft-ocr --tag v1 --public"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft push`."""
    parser.add_argument("folder", metavar="FOLDER", help="the adapter: a folder that `train` or `pull` wrote")
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository; made if it is not there")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="list the files and print every text in them, which would be public: the card, and what stands in headers "
        "and pictures; nothing is sent. Do this first",
    )
    parser.add_argument(
        "--public",
        action="store_true",
        help="make a new repository public (default: private). One that is there stays as it is",
    )
    parser.add_argument(
        "--licence",
        metavar="ID",
        help="licence of the adapter, such as apache-2.0 (default: that of the base model's card, if the adapter does "
        "not contradict it). Give it when neither names one",
    )
    parser.add_argument(
        "--revision",
        metavar="BRANCH",
        help="branch (default: main); made if it is not there. Good for trying things out",
    )
    parser.add_argument(
        "--tag", metavar="NAME", help="name the commit, such as v1, so that people can ask for it (default: no tag)"
    )
    parser.add_argument(
        "--pr",
        action="store_true",
        help="open a pull request (default: commit). Use it for repositories of other people",
    )
    parser.add_argument(
        "--collection",
        metavar="TITLE",
        help="add the repository to a collection, by its title or slug (default: none); it is made if it is not there",
    )
    parser.add_argument(
        "--space",
        action="store_true",
        help="also put up a Space of the same name, the page of `play` with this adapter (default: no). It is as "
        "private as the repository, and reads a private adapter with the token in its secret HF_TOKEN",
    )
    parser.add_argument("--message", metavar="TEXT", help="commit message (default: Upload NAME with diffusion-nft)")
    parser.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="silence after which the Hub counts as gone and is tried again (default: %(default)g). Raise it on a slow "
        "line",
    )


def run(args: argparse.Namespace) -> int:
    """Push, or say what would be pushed."""
    from ..push import make_package, make_space, push

    if args.dry_run:
        package = make_package(args.folder, args.repo, licence=args.licence)
        print(f"{len(package.files)} files would go to {args.repo}:\n{package.listing()}\n\n{package.texts()}")
        if args.space:
            app = make_space(args.folder, args.repo, licence=args.licence)
            print(f"\n{len(app.files)} files would go to the Space {args.repo}:\n{app.listing()}\n\n{app.texts()}")
        return 0
    pushed = push(
        args.folder,
        args.repo,
        private=not args.public,
        licence=args.licence,
        revision=args.revision,
        tag=args.tag,
        create_pr=args.pr,
        collection=args.collection,
        message=args.message,
        space=args.space,
        timeout=args.timeout,
    )
    print(f"{pushed.pull_request or pushed.url} at {pushed.commit}")
    print("only you and its members can see it" if pushed.private else "everybody can see it")
    if pushed.space is not None:
        print(f"the page to play with is {pushed.space}; the Hub builds it for some minutes")
    return 0
