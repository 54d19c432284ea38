"""`diffusion-nft collect SOURCE FOLDER`: a dataset as a folder of pictures with metadata.jsonl."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = """\
Write a dataset as a folder of pictures with metadata.jsonl, which is what offline training reads: a dataset of the
Hugging Face Hub, one saved to disk, webdataset shards or parquet files. Pictures without a score or a like can be
judged in the folder afterwards, by score or rate. The folder is written whole or not at all.

  diffusion-nft collect someone/liked-pictures pictures
  diffusion-nft collect "shards/*.tar" pictures --limit 5000
  diffusion-nft collect someone/votes pictures --image img --prompt caption --liked good"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft collect`."""
    parser.add_argument(
        "source", metavar="SOURCE", help="a Hub id, a folder of a dataset, or .tar or .parquet files by path or pattern"
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder to write; it must be new or empty")
    parser.add_argument("--split", default="train", help="split of the dataset (default: %(default)s)")
    parser.add_argument("--revision", help="for a dataset on the Hub: a branch, tag or commit (default: the newest)")
    parser.add_argument("--image", metavar="COLUMN", help="column of the pictures (default: the first that holds any)")
    parser.add_argument(
        "--prompt", metavar="COLUMN", help="column of the prompts (default: the first of prompt, text, caption, txt)"
    )
    judged = parser.add_mutually_exclusive_group()
    judged.add_argument(
        "--score", metavar="COLUMN", help="column with a number for each picture (default: score, if it exists)"
    )
    judged.add_argument(
        "--liked",
        metavar="COLUMN",
        help="column with true, false, 1 or 0 (default: liked, if it exists and score does not)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="how many rows to read (default: all)")


def run(args: argparse.Namespace) -> int:
    """Write the folder and say what is in it."""
    from nft_pipeline.training.data.collect import Columns, collect

    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit is {args.limit}, expected at least 1")
    columns = Columns(args.image, args.prompt, args.score, args.liked)
    written, left_out = collect(
        args.source, args.folder, split=args.split, revision=args.revision, columns=columns, limit=args.limit
    )
    missing = f"; {left_out} rows left out" if left_out else ""
    print(f"{written} pictures in {args.folder}{missing}")
    return 0
