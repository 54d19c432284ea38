"""A subcommand that does what it is told: raise, or return an exit code."""

from __future__ import annotations

import argparse

HELP = "Raise what --raise names, else return --code."
ERRORS: dict[str, BaseException] = {
    "value": ValueError("beta is -1, expected a number above 0"),
    "missing": FileNotFoundError(2, "No such file or directory", "nowhere.png"),
    "silent": ValueError(),
    "interrupt": KeyboardInterrupt(),
    "scipy": ModuleNotFoundError("No module named 'scipy'", name="scipy.ndimage"),
    "peft": ModuleNotFoundError("No module named 'peft'", name="peft"),
    "ours": ModuleNotFoundError("No module named 'nft_pipeline.oops'", name="nft_pipeline.oops"),
    "broken": ImportError("cannot import name 'x' from 'scipy'", name="scipy"),
    "bug": RuntimeError("a bug"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--raise", dest="error", choices=ERRORS)
    parser.add_argument("--code", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    if args.error:
        raise ERRORS[args.error]
    return args.code
