"""`diffusion-nft calibrate ADAPTER`: find out what each setting of an adapter's dial does, and keep it in the
adapter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nft_pipeline.adapter import AdapterConfig

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
    parser.add_argument("--model", help="base model: a folder or a Hub id (default: what the adapter names)")
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
    parser.add_argument("--watch", help="a reward it was not trained on, which helps to choose between modes")
    parser.add_argument(
        "--pictures",
        type=int,
        default=2000,
        help="pictures to draw, one in two passes counting twice (default: 2000; errors shrink with the root of it)",
    )
    parser.add_argument(
        "--guidance-scale",
        type=float,
        help="classifier-free guidance to calibrate at (default: what the adapter was made for). A map for another "
        "scale than before is kept beside the first",
    )
    parser.add_argument("--steps", type=int, help="denoising steps (default: what the model sets)")
    parser.add_argument("--batch", type=int, default=32, help="pictures at once (default: 32); less needs less memory")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda, ...")


def run(args: argparse.Namespace) -> int:
    """Draw, judge, write; 1 if the adapter does not move what is judged."""
    from nft_pipeline import DiffusionNFTPipeline
    from nft_pipeline.adapter import read_adapter, write_adapter
    from nft_pipeline.adapters.write import adapter_files
    from nft_pipeline.dial.promise import promise
    from nft_pipeline.sampling import pick_device, pick_dtype

    from ..rewards.find import find_prompts, find_reward
    from .calibrate import LEAST
    from .measure_adapter import Judging, calibrate_adapter

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
    config = pipe.nft_config
    settings = _run_settings(config)
    prompts_name = args.prompts or settings.get("held_out_prompts") or settings.get("prompts")
    if not prompts_name:
        raise ValueError(f"{config.name!r} does not say which prompts it was measured on; give --prompts")
    reward_name = args.reward or config.reward.get("name", "")
    if reward_name in ("", "unknown", "likes"):
        reward_name = "alpha"
    if reward_name == "alpha" and pipe.nft_adapters["default"].head is None:
        raise ValueError(f"{config.name!r} has no alpha head that could judge; give --reward")
    method: Any = settings.get("optimality", "raw") if args.reward is None else "raw"
    rewards = {} if reward_name == "alpha" else {reward_name: find_reward(reward_name, own_scale=method != "raw")}
    watch = find_reward(args.watch) if args.watch else None
    scale = config.guidance_scale if args.guidance_scale is None else args.guidance_scale
    call: dict[str, Any] = {"guidance_scale": scale}
    if args.steps:
        call["num_inference_steps"] = args.steps
    judging = Judging(rewards, {}, method, settings.get("optimality_at"), watch)
    print(f"calibrating {config.name}: {args.pictures} pictures, judged by {reward_name}")
    adapter, found = calibrate_adapter(
        pipe, "default", find_prompts(prompts_name), judging, pictures=args.pictures, seed=args.seed, batch=args.batch,
        call=call,
    )  # fmt: skip
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
