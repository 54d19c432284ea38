"""`diffusion-nft check`: tries a training run out in small, and reports all faults at once."""

from __future__ import annotations

import argparse

from .train_command import add_run_arguments, overrides_of

HELP = "find what would stop a training run in hour three, now"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft check`."""
    parser.description = (
        "Tries a training run out in a minute or so: settings, reward, prompts, pictures, disk, base model, one batch "
        "of samples, one optimiser step at the run's batch size, what measures the adapter, one adapter. All faults "
        "come in one report, and without any the hours that the run takes, by phase. The exit code is 1 if there are "
        "any faults."
    )
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Try the run out and print all faults in one report."""
    from ..settings.trust import ask_before_code
    from .check import check

    overrides = overrides_of(args)
    ask_before_code(args.run, overrides, args.trust)
    faults = check(args.run, overrides, args.out, device=args.device)
    if not faults:
        print("the run can start")
        return 0
    print(f"{len(faults)} fault{'s' * (len(faults) > 1)}:")
    for fault in faults:
        print("  - " + fault.replace("\n", "\n    "))
    return 1
