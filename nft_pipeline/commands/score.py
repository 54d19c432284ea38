"""`diffusion-nft score IMAGES --reward NAME`: scores a folder of pictures into its metadata.jsonl."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

HELP = """\
Score a folder of pictures with one reward or several, into metadata.jsonl beside them, which is what offline training
reads. A picture's prompt is that of its line there, or of a text file of its name, or --prompt. The same command goes
on where an earlier one stopped; scores are cached, so a changed weight costs nothing.

  diffusion-nft score pictures --reward ocr
  diffusion-nft score pictures --reward image_reward --reward jpeg_size=-0.2 --device cuda
  diffusion-nft score pictures --reward pickscore --option pickscore.weights=models/pickscore"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft score`."""
    parser.add_argument("images", metavar="IMAGES", type=Path, help="the folder; folders in it are included")
    add_reward_arguments(parser)
    parser.add_argument(
        "--prompt", metavar="TEXT", help="for pictures that have no prompt of their own (default: an error names them)"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="score also pictures that have a score by these rewards (default: leave them). Give it after pictures or "
        "prompts were changed; scores that are in the cache are not computed again",
    )
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="compute every score (default: take it from the cache of your user account if picture, prompt and version "
        "of the reward are the same). Give it to measure a reward's speed",
    )


def add_reward_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which rewards, and where they are computed."""
    parser.add_argument(
        "--reward",
        metavar="NAME[=WEIGHT]",
        action="append",
        required=True,
        help="a built-in name (image_reward, pickscore, clip_score, aesthetic, hps_v2, ocr, vlm_judge, jpeg_size, "
        "colourfulness, sharpness, ...), your own as module:function, or remote:URL; may be given several times. "
        "WEIGHT (default: 1) is relative to the other rewards' weights; below 0 a low score is good",
    )
    parser.add_argument(
        "--option",
        metavar="NAME.KEY=VALUE",
        action="append",
        default=[],
        help="an option of a reward, such as pickscore.weights=FOLDER; may be given several times",
    )
    parser.add_argument(
        "--device", default="auto", help="where rewards with a model run: auto (CUDA if there is one), cpu, cuda, ..."
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="pictures at once, for rewards with a model (default: each reward's own, 16 or 32); lower it when memory "
        "runs out",
    )


def rewards_of(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The `rewards:` mapping that the options spell out.

    Raises:
        ValueError: a weight that is no number, an option of no reward that was named, or one without a value.
    """
    spec: dict[str, dict[str, Any]] = {}
    for word in args.reward:
        name, equals, weight = word.rpartition("=")
        if equals and "://" not in weight:
            try:
                spec[name] = {"weight": float(weight)}
            except ValueError as error:
                raise ValueError(f"--reward {word}: weight is {weight!r}, expected a number") from error
        else:
            spec[word] = {"weight": 1.0}
    for word in args.option:
        left, equals, value = word.partition("=")
        name, dot, key = left.rpartition(".")
        if not (equals and dot and name in spec):
            raise ValueError(f"--option {word}: expected NAME.KEY=VALUE with one of the rewards {', '.join(spec)}")
        import yaml

        spec[name][key] = yaml.safe_load(value)
    return spec


def load_mix(args: argparse.Namespace) -> Any:
    """The rewards, loaded.

    Raises:
        RewardError: as `load_rewards`.
    """
    from nft_pipeline.training.rewards import load_rewards

    from ..sampling import pick_device

    if args.batch is not None and args.batch < 1:
        raise ValueError(f"--batch is {args.batch}, expected at least 1")
    general = {"device": pick_device(args.device), **({"batch": args.batch} if args.batch else {})}
    return load_rewards(rewards_of(args), **general)


def run(args: argparse.Namespace) -> int:
    """Score the folder and say what came out."""
    from nft_pipeline.training.rewards.cache import CachedReward, ScoreCache, default_cache
    from nft_pipeline.training.rewards.folders.scoring import score_folder
    from nft_pipeline.training.rewards.mix import RewardMix

    from ..files.picture_list import METADATA, find_pictures, read_rows

    find_pictures(args.images)  # before a model of gigabytes is loaded
    mix = load_mix(args)
    if not args.no_cache:
        cache = ScoreCache(default_cache())
        mix = RewardMix({name: (CachedReward(reward, cache), weight) for name, (reward, weight) in mix.parts.items()})
    count = score_folder(args.images, mix, prompt=args.prompt, again=args.again)
    scores = [row["score"] for row in read_rows(args.images) if row.get("reward") == mix.info.name]
    mean = f"mean {sum(scores) / len(scores):.3f}, {min(scores):.3f} to {max(scores):.3f}" if scores else "none"
    print(f"{count} scored now, {len(scores)} in {args.images / METADATA}: {mean}")
    return 0
