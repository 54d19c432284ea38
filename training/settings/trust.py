"""Settings that run code: what a file or an adapter from somebody else names is asked about before it is imported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .file import read_settings
from .public import REMOTE

_REWARDS, _PROMPTS = ("reward", "watch_reward"), ("prompts", "held_out_prompts")


def add_trust_argument(parser: argparse.ArgumentParser, source: str = "YAML file") -> None:
    """--trust, of a command that imports what a YAML file or an adapter names.

    Args:
        parser: of the command.
        source: what names the code, in a word or two.
    """
    parser.add_argument(
        "--trust",
        action="store_true",
        help=f"import the code that the {source} names (module:name) without asking; look at it first if the "
        f"{source.split()[-1]} is from somebody else",
    )


def ask_before_code(source: str, overrides: Mapping[str, Any], trust: bool) -> None:
    """Ask a person at the terminal whether the code that a settings file names may run.

    A preset names none, and what --set names was typed by the person who runs it.

    Args:
        source: a file or a preset, as `read_settings` takes it.
        overrides: what --set gives.
        trust: whether --trust was given; then nothing is asked.

    Raises:
        ConfigError: no such file; or the person said no, or cannot be asked.
    """
    ask(source, {name: value for name, value in read_settings(source).items() if name not in overrides}, trust)


def ask(source: str, settings: Mapping[str, Any], trust: bool) -> None:
    """Ask whether the code that settings name may run; arguments and errors as `ask_before_code`."""
    code = code_in(settings)
    if trust or not code:
        return
    what = f"{source} names code of your own or of somebody else: {', '.join(code)}"
    if sys.stdin is not None and sys.stdin.isatty():
        answer = input(f"{what}. Importing it runs it, with all that you may do on this machine. Go on? [y/N] ")
        if answer.strip().lower() in ("y", "yes"):
            return
    raise ConfigError([f"{what}. Importing it runs it; look at it first, then give --trust"])


def code_in(settings: Mapping[str, Any]) -> list[str]:
    """What a run's settings would import, as module:name, in their order and once each."""
    rewards = settings.get("rewards")
    names = [settings.get(name) for name in _REWARDS]
    names += list(rewards) if isinstance(rewards, Mapping) else []
    names += settings["sweep_rewards"] if isinstance(settings.get("sweep_rewards"), list) else []
    found = [name for name in names if isinstance(name, str) and ":" in name and not name.startswith(REMOTE)]
    lists = [settings.get(name) for name in _PROMPTS]
    found += [name for name in lists if isinstance(name, str) and ":" in name and not Path(name).is_file()]
    return list(dict.fromkeys(found))
