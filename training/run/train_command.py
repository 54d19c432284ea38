"""`diffusion-nft train`: trains an adapter, or goes on with a run that was stopped."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..settings.file import preset_names
from ..settings.trust import add_trust_argument

HELP = "train an adapter from a run's YAML file, or from a preset"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft train`."""
    parser.description = (
        "Train an adapter: from pictures sampled from the base model and scored, from a folder of scored or liked "
        "pictures, or online in rounds. Writes OUT/adapter. The same command resumes a run that was stopped: the first "
        "Ctrl-C finishes the step and saves, the second ends at once."
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--more",
        metavar="N",
        type=int,
        default=0,
        help="train N rounds (N steps of an offline run) more than the settings say. A run that was finished without "
        "them goes on from its last state; give the same again to go on after a stop",
    )
    parser.add_argument(
        "--explain",
        metavar="NAME",
        nargs="?",
        const="all",
        action=_Explain,
        help="explain the setting NAME of the YAML file: what it means, its range, its default, and when to change it; "
        "without a name, list all settings. Nothing is trained",
    )


class _Explain(argparse.Action):
    """Prints and ends, as --help does: no run has to be named beside it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        from ..settings.explain import explain

        print(explain(str(values)))
        sys.stdout.flush()
        parser.exit()


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """What says which run is meant; `check` has the same."""
    families = [name for name in preset_names() if name not in ("large_model", "shapes_follow", "shapes_warm")]
    parser.add_argument(
        "run",
        help="a YAML file, or a preset: shapes_warm (five minutes on two cores), shapes_follow (online, forty "
        f"minutes), or one for a family of large models: {', '.join(families)}. To make your own, begin a file with "
        "`preset: sdxl` and give what is to differ, or copy large_model or shapes_warm from training/presets, where "
        "every line says when to change it",
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
    add_trust_argument(parser)


def overrides_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that --set gives.

    Raises:
        ConfigError: one is not KEY=VALUE.
    """
    from ..errors import ConfigError
    from ..settings.file import read_yaml

    overrides = {}
    for assignment in args.set:
        key, separator, value = assignment.partition("=")
        if not separator:
            raise ConfigError([f"--set {assignment!r} is not KEY=VALUE, for example --set steps=1000"])
        overrides[key.strip()] = read_yaml(value)
    return overrides


def run(args: argparse.Namespace) -> int:
    """Train, or go on where a stopped run was."""
    from ..errors import ConfigError
    from ..settings.config import TrainConfig
    from ..settings.trust import ask_before_code
    from .stopping import Stopped
    from .trainer import train

    if args.more < 0:
        raise ConfigError([f"--more is {args.more}, expected a whole number from 1"])
    overrides = overrides_of(args)
    ask_before_code(args.run, overrides, args.trust)
    config = TrainConfig.from_yaml(args.run, overrides)
    out = args.out or Path("runs") / config.name
    try:
        train(config, out, device=args.device, more=args.more)
    except Stopped as stop:
        again = ["diffusion-nft", "train", args.run, *(part for item in args.set for part in ("--set", item))]
        again += ["--trust"] * args.trust
        again += ["--more", str(args.more)] if args.more else []
        print(f"{stop}. To go on: {shlex.join([*again, '--out', str(out)])}")
        return 130
    return 0
