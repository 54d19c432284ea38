"""`diffusion-nft calibrate ADAPTER`: find out what each setting of an adapter's dial does, and keep it in the
adapter."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings.trust import add_trust_argument

if TYPE_CHECKING:
    from nft_pipeline.adapter import Adapter, AdapterConfig

    from ..rewards.find import Facts
    from ..settings.choices import Method
    from .by_hand import Rating
    from .calibrate import Calibrated
    from .measure_adapter import Judging

NOBODY = ("", "unknown", "likes")  # names of rewards that cannot be run
HELP = "find out what each strength does, and keep it in the adapter"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft calibrate`."""
    parser.description = (
        "Draws held-out prompts with an adapter at a few weights, judges the pictures, and writes into the adapter "
        "which weight each strength needs: from then on a tilt multiplies the odds of a liked picture by e^tilt, up to "
        "what the adapter reaches, and --rate and nft_rate find the strength for a share of liked pictures. A training "
        "run does it by itself; use this for an adapter that has no calibration, or at another guidance scale."
    )
    parser.add_argument("adapter", help="a folder, a shipped adapter's name, a Hub id, or with --kind a file")
    parser.add_argument("--out", type=Path, help="folder to write (default: the adapter's own folder)")
    parser.add_argument("--model", help="base model: a folder, a Hub id or one file (default: what the adapter names)")
    parser.add_argument(
        "--kind", choices=("policy",), help='for somebody else\'s LoRA: "policy", as for `diffusion-nft sample`'
    )
    parser.add_argument("--beta", type=float, help="with --kind: the beta it was trained with (default: 1)")
    parser.add_argument(
        "--reward",
        help="who judges: a built-in reward, module:function or remote:URL (default: the one it was trained on); "
        '"alpha" lets the adapter\'s own head judge, where no reward can be run',
    )
    parser.add_argument(
        "--prompts", help="held-out prompts: a built-in list, a text file, or module:function (default: the run's own)"
    )
    parser.add_argument(
        "--by-hand",
        type=Path,
        metavar="FOLDER",
        help="you judge: the first time, 64 pictures are drawn into FOLDER; rate them with diffusion-nft rate FOLDER, "
        "and give the same command again",
    )
    parser.add_argument(
        "--ratings",
        type=Path,
        metavar="FOLDER",
        help="with --by-hand: the base model's pictures that you have rated before, to train on. They say how often it "
        "is liked, which 64 pictures alone do not (default: the run's own folder, if it is on this machine)",
    )
    parser.add_argument("--watch", help="a reward it was not trained on, which helps to choose between modes")
    parser.add_argument(
        "--pictures",
        type=int,
        default=2400,
        help="pictures to draw, one in two passes counting twice (default: 2400; 4800 come nearer to what is "
        "promised, more hardly do)",
    )
    parser.add_argument(
        "--guidance-scale",
        type=float,
        help="classifier-free guidance to calibrate at (default: what the adapter was made for). A map for another "
        "scale than before is kept beside the first",
    )
    add_trust_argument(parser, "adapter")
    parser.add_argument("--steps", type=int, help="denoising steps (default: what the model sets)")
    parser.add_argument("--batch", type=int, default=32, help="pictures at once (default: 32); less needs less memory")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda, ...")


def run(args: argparse.Namespace) -> int:
    """Draw, judge, write; 1 if the adapter does not move what is judged."""
    from nft_pipeline import DiffusionNFTPipeline
    from nft_pipeline.adapter import read_adapter
    from nft_pipeline.sampling import pick_device, pick_dtype

    from ..rewards.find import find_prompts, prompt_facts
    from ..settings.public import public_names
    from ..settings.trust import ask
    from .calibrate import LEAST
    from .measure_adapter import calibrate_adapter

    if args.pictures < LEAST:
        raise ValueError(f"--pictures is {args.pictures}, expected {LEAST} or more: fewer say nothing")
    folder = args.out or Path(args.adapter)
    if args.out is None and not (folder / "nft_config.json").is_file():
        raise ValueError(
            f"{args.adapter} is not an adapter's folder on this machine, so there is no place to write to; give --out"
        )
    device = pick_device(args.device)
    theirs = {name: value for name, value in (("kind", args.kind), ("beta", args.beta)) if value is not None}
    model = args.model or read_adapter(args.adapter, **theirs).config.base_model.id
    pipe = DiffusionNFTPipeline.from_pretrained(model, dtype=pick_dtype("auto", device))
    pipe.to(device)
    pipe.load_nft_adapter(args.adapter, **theirs)
    config = pipe.nft_adapters["default"].config
    settings = _run_settings(config)
    theirs_too = {} if args.reward else {"reward": config.reward.get("name"), "rewards": settings.get("rewards")}
    if not args.prompts:
        theirs_too |= {name: settings.get(name) for name in ("prompts", "held_out_prompts")}
    ask(f"the adapter {config.name!r}", theirs_too, args.trust)
    prompts_name = args.prompts or settings.get("held_out_prompts") or settings.get("prompts")
    if not prompts_name:
        raise ValueError(f"{config.name!r} does not say which prompts it was measured on; give --prompts")
    # As the trainer counts it, where 1 is without guidance for every family.
    made_at = settings.get("guidance_scale", config.guidance_scale)
    scale = made_at if args.guidance_scale is None else args.guidance_scale
    call: dict[str, Any] = {"guidance_scale": scale, "negative_prompt": settings.get("negative_prompt", "")}
    if args.steps:
        call["num_inference_steps"] = args.steps
    prompts = find_prompts(prompts_name)
    if args.by_hand is not None:
        return _by_hand(args, pipe, folder, prompts, call)
    judging = _judging(args, config, settings, prompt_facts(prompts_name))
    if not judging.rewards and pipe.nft_adapters["default"].head is None:
        raise ValueError(f"{config.name!r} has no alpha head that could judge; give --reward")
    who = " + ".join(public_names(judging.rewards).values()) or "its own alpha head"
    print(f"calibrating {config.name}: {args.pictures} pictures, judged by {who}")
    adapter, found = calibrate_adapter(
        pipe, "default", prompts, judging, pictures=args.pictures, seed=args.seed, batch=args.batch, call=call
    )
    return _write(folder, adapter, found)


def _judging(args: argparse.Namespace, config: AdapterConfig, settings: dict[str, Any], facts: Facts) -> Judging:
    """Who judges: what --reward names, or the rewards of the run; nobody where there are only likes."""
    from ..data.optimality import BY_CARD
    from ..rewards.find import find_reward
    from ..settings.public import LEFT_OUT
    from .measure_adapter import Judging

    watch = find_reward(args.watch, facts=facts) if args.watch else None
    if args.reward is not None:
        rewards = {} if args.reward == "alpha" else {args.reward: find_reward(args.reward, facts=facts)}
        return Judging(rewards, {}, watch=watch)
    name = config.reward.get("name", "")
    recorded = settings.get("rewards")
    entries = dict(recorded) if isinstance(recorded, Mapping) and recorded else {} if name in NOBODY else {name: 1.0}
    method: Method = settings.get("optimality", "raw")
    rewards, weights = {}, {}
    for one, entry in entries.items():
        options = dict(entry) if isinstance(entry, Mapping) else {"weight": entry}
        weights[one] = float(options.pop("weight", 1.0))
        known = {key: value for key, value in options.items() if value != LEFT_OUT}
        rewards[one] = find_reward(one, own_scale=method not in BY_CARD, facts=facts, **known)
    return Judging(rewards, weights, method, settings.get("optimality_at"), watch, settings.get("mix", "mean"))


def _by_hand(args: argparse.Namespace, pipe: Any, folder: Path, prompts: list[str], call: dict[str, Any]) -> int:
    """Draw pictures to be rated, or read the ratings."""
    import torch

    from .by_hand import WEIGHTS_FILE, calibrate_by_hand, draw_for_rating
    from .measure_adapter import draws_of, with_dial

    draws = draws_of(pipe, "default", prompts, args.batch, call)
    if not (args.by_hand / WEIGHTS_FILE).is_file():
        with torch.inference_mode():
            count = draw_for_rating(draws, args.by_hand, args.seed)
        print(f"{count} pictures in {args.by_hand}. Rate them: diffusion-nft rate {args.by_hand}")
        print("Then give this command again.")
        return 0
    adapter = pipe.nft_adapters["default"]
    before = ratings_before(args, adapter.config, draws.base.stock_guidance_scale)
    found = calibrate_by_hand(draws, args.by_hand, before)
    return _write(folder, replace(adapter, config=with_dial(adapter.config, found.dial)), found)


def ratings_before(args: argparse.Namespace, config: AdapterConfig, guidance_scale: float) -> list[Rating]:
    """The ratings that the person gave to the base model's pictures before: those in the folder of --ratings, or in the
    one that the run learned from, where the adapter stands in its run's folder.

    Raises:
        ValueError: the folder of --ratings has no ratings.
    """
    import yaml

    from nft_pipeline.files.picture_list import METADATA

    from .by_hand import fair_ratings

    folder, models = args.ratings, {config.base_model.id}
    settings = Path(args.adapter).parent / "settings.yaml"
    if settings.is_file():  # of any version: a setting that is unknown by now does not matter here
        run = yaml.safe_load(settings.read_text(encoding="utf-8"))
        folder = folder or (Path(run["data"]) if run.get("data") else None)
        models |= {name for name in (run.get("base_model"), run.get("base_id")) if name}
    if folder is None or not (folder / METADATA).is_file():
        if args.ratings is not None:
            raise ValueError(f"there is no {folder / METADATA}; give --ratings a folder of pictures that you rated")
        return []
    found = fair_ratings(folder, models, guidance_scale)
    print(f"{len(found)} ratings in {folder} are a fair sample of what the base model draws, and count for it")
    return found


def _write(folder: Path, adapter: Adapter, found: Calibrated) -> int:
    from nft_pipeline.adapter import write_adapter
    from nft_pipeline.adapters.write import adapter_files
    from nft_pipeline.dial.promise import promise

    written = write_adapter(folder, adapter, _other_files(folder, set(adapter_files(adapter))))
    print(f"{found.reason}\n{found.forwards} forwards of one picture each; written to {written}")
    for strength in (-1.0, 0.5, 1.0, 2.0) if found.learned else ():
        print(f"strength {strength:g}: {promise(adapter.config, strength)}")
    return 0 if found.learned else 1


def _other_files(folder: Path, own: set[str]) -> dict[str, bytes]:
    """What stands beside an adapter in its folder (card, report, samples), to be kept as it is."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in paths.items() if name not in own}


def _run_settings(config: AdapterConfig) -> dict[str, Any]:
    """The settings of the run that made it, {} where they are not recorded."""
    settings = config.training.get("settings", {})
    return dict(settings) if isinstance(settings, dict) else {}
