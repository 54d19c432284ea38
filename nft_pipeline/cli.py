"""The `diffusion-nft` command: find the subcommand, load its module and no other, turn errors into one clean message.

A subcommand is a module with three names:

    HELP: str                                     what it does and when one wants it, shown above its options
    add_arguments(parser: ArgumentParser) -> None (may replace the parser's description by a longer one)
    run(args: Namespace) -> int                   the exit code

`COMMANDS` says where they live. Nothing heavy is imported to print the top-level help; a subcommand's module should
itself import torch and diffusers inside `run`, so that its own help is quick as well.

Exit codes: 0 done; 1 done, but the answer is no (the demo's guidance did not help); 2 an error the user can mend;
130 interrupted; 141 the reader of the output went away.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from types import ModuleType
from typing import NamedTuple

from . import torchvision_repair
from .checks import did_you_mean
from .files.private import without_secrets

PROG = "diffusion-nft"


class Command(NamedTuple):
    """Where a subcommand lives, and its line in the top-level help."""

    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "demo": Command("nft_pipeline.training.demo.demo_command", "train a small adapter before your eyes and measure it"),
    "sample": Command("nft_pipeline.commands.sample", "draw prompts at several strengths into one labelled picture"),
    "play": Command("nft_pipeline.commands.play", "move the dial on a local page and like what it draws"),
    "info": Command("nft_pipeline.commands.info", "say what an adapter is: kind, base model, tilt, reward, licence"),
    "card": Command("nft_pipeline.hub_cards.commands.card", "write an adapter's card from its own numbers"),
    "push": Command("nft_pipeline.hub_cards.commands.push", "put an adapter with its card on the Hub"),
    "pull": Command("nft_pipeline.hub_cards.commands.pull", "fetch an adapter from the Hub into a folder"),
    "verify": Command("nft_pipeline.hub_cards.commands.verify", "say everything that is wrong with an adapter"),
    "export": Command("nft_pipeline.hub_cards.commands.export", "write an adapter's LoRA for other tools"),
    "extract": Command("nft_pipeline.commands.extract", "make an adapter of a fully tuned model, against its base"),
    "train": Command("nft_pipeline.training.run.train_command", "train an adapter"),
    "calibrate": Command(
        "nft_pipeline.training.dial.calibrate_command", "find out what each strength does, and keep it in the adapter"
    ),
    "compare": Command("nft_pipeline.training.show.compare_command", "put two training runs side by side on one page"),
    "check": Command("nft_pipeline.training.run.check_command", "find what would stop a training run later, now"),
    "collect": Command("nft_pipeline.commands.collect", "write a dataset as a folder of pictures, to train on"),
    "score": Command("nft_pipeline.commands.score", "score a folder of pictures with rewards, for training on them"),
    "draw": Command("nft_pipeline.commands.draw", "draw a folder of the base model's own pictures, to rate"),
    "rate": Command("nft_pipeline.commands.rate", "like and dislike pictures on a local page, for training on them"),
    "reward": Command("nft_pipeline.commands.reward", "list the rewards, or serve one to runs on other machines"),
    "eval": Command("nft_pipeline.training.demo.eval_command", "score an adapter on prompts and rewards of your own"),
    "env": Command("nft_pipeline.commands.env", "print versions and device, to paste into a bug report"),
}

# Import names of what the extras bring, and of what a plain installation brings.
_EXTRAS = {
    "train": {"datasets", "filelock", "matplotlib", "requests", "scipy", "yaml"},
    "hub": {"jinja2"},
    "play": {"gradio"},
}
_CORE = {
    "PIL",
    "accelerate",
    "diffusers",
    "huggingface_hub",
    "numpy",
    "peft",
    "safetensors",
    "torch",
    "tqdm",
    "transformers",
}


class _Formatter(argparse.HelpFormatter):
    """Wraps descriptions paragraph by paragraph; indented paragraphs, such as examples, stay as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=min(shutil.get_terminal_size().columns, 110) - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(
            p if "\n " in f"\n{p}" else super(_Formatter, self)._fill_text(p, width, indent) for p in paragraphs
        )


def top_parser() -> argparse.ArgumentParser:
    """The parser of what stands before the subcommand's name."""
    width = max(map(len, COMMANDS))
    listing = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage=f"{PROG} [--debug] COMMAND [options]",
        description="Reward guidance for diffusion models, dialled at inference time.",
        epilog=f"commands:\n{listing}\n\n`{PROG} COMMAND --help` explains a command's options. To begin: {PROG} demo",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {_version()}")
    _add_debug(parser, default=False)
    return parser


def command_parser(name: str, module: ModuleType) -> argparse.ArgumentParser:
    """The parser of one subcommand, filled by its module.

    Args:
        name: a key of `COMMANDS`.
        module: its module, imported.
    """
    parser = argparse.ArgumentParser(
        prog=f"{PROG} {name}", description=module.HELP.strip(), formatter_class=_Formatter, allow_abbrev=False
    )
    module.add_arguments(parser)
    _add_debug(parser, default=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments without the program's name; default sys.argv[1:].

    Returns:
        The exit code, see the module's text. Errors are printed to stderr, with a traceback only under --debug.
    """
    torchvision_repair.watch()
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Top-level options take no values, so the first word without a dash is the subcommand.
    at = next((i for i, word in enumerate(arguments) if not word.startswith("-")), len(arguments))
    debug = "--debug" in arguments
    name = arguments[at] if at < len(arguments) else None
    try:
        top = top_parser()
        top.parse_args(arguments[:at])
        if name is None:
            top.print_help()
            return 0
        if name not in COMMANDS:
            raise ValueError(_unknown_command(name))
        module = importlib.import_module(COMMANDS[name].module)
        code = int(module.run(command_parser(name, module).parse_args(arguments[at + 1 :])))
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse: 0 after --help, 2 after a wrong option, which it has explained
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        return _fail("stopped", 130, debug)
    except ImportError as error:
        advice = _missing_package(name, error)
        if advice is None:
            raise
        return _fail(advice, 2, debug)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit complains again
        return 141
    except (ValueError, OSError) as error:
        hint = "" if debug else f"\n(`{PROG} --debug ...` shows where this was raised)"
        return _fail(f"error: {str(error) or type(error).__name__}{hint}", 2, debug)


def _add_debug(parser: argparse.ArgumentParser, default: bool | str) -> None:
    parser.add_argument(
        "--debug", action="store_true", default=default, help="show the traceback of an error; add it to a bug report"
    )


def _version() -> str:
    try:
        return metadata.version("diffusion-nft")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    # Errors are pasted into bug reports.
    print(f"{PROG}: {without_secrets(message, addresses=False)}", file=sys.stderr)
    return code


def _unknown_command(name: str) -> str:
    meant = did_you_mean(name, COMMANDS, "did you mean {!r}?") or f"expected one of {', '.join(COMMANDS)}."
    return f"there is no command {name!r}; {meant}"


def _missing_package(command: str | None, error: ImportError) -> str | None:
    """What to install, if the import that failed is of something an installation brings; None for our own faults."""
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError):
        return None
    for extra, packages in _EXTRAS.items():
        if package in packages:
            return f'`{command}` needs {package}, which is not installed: pip install "diffusion-nft[{extra}]"'
    if package in _CORE:
        return f"`{command}` needs {package}, which is not installed: pip install diffusion-nft"
    return None
