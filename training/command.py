"""`diffusion-nft train`."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "train an adapter from a run's YAML file, or from a preset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train an adapter: samples a pool from the base model, scores it, trains the LoRA and the alpha head on it, "
        "and writes OUT/adapter. The same command resumes a run that was stopped."
    )
    parser.add_argument(
        "run",
        help="a YAML file, or a preset: shapes_warm (four minutes on two cores), shapes_follow. To make "
        "your own, copy a preset from training/presets; every line says when to change it",
    )
    parser.add_argument(
        "--out", type=Path, help="the run's folder (default: runs/NAME); use a new one for new settings"
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="override one setting, for example --set steps=1000; may be given several times",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda; auto takes CUDA if there is one (default)")


def run(args: argparse.Namespace) -> int:
    import yaml

    from .config import ConfigError, TrainConfig
    from .stopping import Stopped
    from .trainer import train

    overrides = {}
    for assignment in args.set:
        key, separator, value = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set {assignment!r} is not KEY=VALUE, for example --set steps=1000")
        overrides[key.strip()] = yaml.safe_load(value)
    config = TrainConfig.from_yaml(args.run, overrides)
    out = args.out or Path("runs") / config.name
    try:
        train(config, out, device=args.device)
    except Stopped as stop:
        again = ["diffusion-nft", "train", args.run, *(f"--set {item}" for item in args.set), f"--out {out}"]
        print(f"{stop}. To go on: {' '.join(again)}")
        return 130
    return 0
