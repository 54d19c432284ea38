"""`diffusion-nft draw RUN FOLDER`: pictures of the base model alone, in a folder that can be rated and trained on."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = """\
Draw pictures with the base model of a run, as the run itself would draw them, into a folder with metadata.jsonl. Rate
them with `diffusion-nft rate FOLDER` and train on them with `data: FOLDER`: the lines name the base model, so the run
knows that it made them and trains a positive adapter. The same command draws more, with other noise.

  diffusion-nft draw sdxl pictures --count 200
  diffusion-nft draw my_run.yaml pictures --prompts prompts.txt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft draw`."""
    from nft_pipeline.training.settings.trust import add_trust_argument

    parser.add_argument("run", metavar="RUN", help="the run's YAML file, or a preset")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where the pictures go; made when missing")
    parser.add_argument("--count", type=int, default=100, metavar="N", help="how many to draw (default: %(default)s)")
    parser.add_argument(
        "--prompts",
        metavar="NAME",
        help="a built-in list, a text file with one prompt per line, or module:function (default: the run's prompts)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="of the first picture; each has the next one (default: the one behind the largest in the folder)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda; auto takes CUDA if there is one (default)")
    add_trust_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Draw, and say how to go on."""
    from nft_pipeline.training.data.drawn import draw_folder
    from nft_pipeline.training.rewards.find import find_prompts
    from nft_pipeline.training.run.load import load_base
    from nft_pipeline.training.settings.config import TrainConfig
    from nft_pipeline.training.settings.trust import ask_before_code

    if args.count < 1:
        raise ValueError(f"--count is {args.count}, expected 1 or more")
    ask_before_code(args.run, {} if args.prompts is None else {"prompts": args.prompts}, args.trust)
    config = TrainConfig.from_yaml(args.run)
    source = args.prompts or config.prompts
    if source is None:
        raise ValueError(f"{args.run} names no prompts, because it trains on a folder; give --prompts")
    prompts = find_prompts(source)
    base, _ = load_base(config, args.device)
    count = draw_folder(base, config, prompts, args.folder, args.count, args.seed)
    print(f"{count} pictures in {args.folder}. Rate them: diffusion-nft rate {args.folder}")
    return 0
