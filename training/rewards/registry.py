"""Rewards by name: built in, by an installed package's entry point, or "module:name" for one of your own.

A built-in reward is a file of the room `kinds`, which says its names and needs in two literals, `REWARDS` and `NEEDS`.
They are read from the file's text: nothing is imported before a reward is asked for. An installed package offers
rewards in its pyproject.toml:

    [project.entry-points."diffusion_nft.rewards"]
    tidy = "their_package.rewards:Tidy"

What a path names is a `Reward` (the class or an instance), or a plain function of images, prompts and metadata that
returns B scores in [0, 1]; with an attribute `info`, a `RewardInfo`, it may have any other scale.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from nft_pipeline.checks import did_you_mean

from .contract import Reward, RewardError, RewardInfo, RewardOutput

ENTRY_POINTS = "diffusion_nft.rewards"
REMOTE = "remote:"
_KINDS = "nft_pipeline.training.rewards.kinds"
_ROOM = Path(__file__).parent / "kinds"


class FunctionReward(Reward):
    """A plain function as a reward."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function = function
        self.info = getattr(function, "info", None) or RewardInfo(name=name, licence="your own")

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """What the function returns, checked: B numbers in the range of the card."""
        try:
            found = self.function(images, prompts, metadata)
        except Exception as error:  # code of other people: whatever it raises, the error should say whose code it was
            raise RewardError(f"reward {self.info.name!r} failed: {type(error).__name__}: {error}") from error
        if not isinstance(found, RewardOutput):
            try:
                found = RewardOutput(torch.as_tensor(found, dtype=torch.float32))
            except (TypeError, ValueError, RuntimeError) as error:
                raise RewardError(
                    f"reward {self.info.name!r} returned {type(found).__name__}; expected {len(images)} numbers or a "
                    f"RewardOutput ({error})"
                ) from error
        low, high = self.info.range
        seen = found.scores[found.scores.isfinite()]
        if len(seen) and not (seen.min() >= low and seen.max() <= high):
            raise RewardError(
                f"reward {self.info.name!r} gave scores from {seen.min():.4g} to {seen.max():.4g}, outside its range "
                f"{low:g} to {high:g}; give the function an attribute `info`, a RewardInfo with the right range"
            )
        return found


@cache
def _literals(room: Path) -> dict[str, dict[str, dict[str, str]]]:
    """What each file of the room says in `REWARDS` and in `NEEDS`, by the names of the file and of the literal."""
    literals: dict[str, dict[str, dict[str, str]]] = {}
    for file in sorted(room.glob("[!_]*.py")):
        of_file = literals[file.stem] = {}
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for name in {"REWARDS", "NEEDS"} & {ast.unparse(target) for target in targets}:
                    of_file[name] = ast.literal_eval(node.value)
    return literals


def built_in() -> dict[str, str]:
    """Every built-in name in alphabetical order, "remote:URL" among them, with the "module:name" behind it.

    Raises:
        RewardError: two files of the room declare one name.
    """
    home: dict[str, str] = {}
    paths: dict[str, str] = {}
    for file, literals in _literals(_ROOM).items():
        for name, cls in literals.get("REWARDS", {}).items():
            if (first := home.setdefault(name, file)) != file:
                raise RewardError(
                    f"the built-in reward {name!r} is declared in {first}.py and in {file}.py; give one of them "
                    "another name in its REWARDS"
                )
            paths[name] = f"{_KINDS}.{file}:{cls}"
    return dict(sorted(paths.items()))


def known_rewards() -> dict[str, str]:
    """Every name that needs no path, with the "module:name" behind it: built in, or from installed packages."""
    installed = {point.name: point.value for point in metadata.entry_points(group=ENTRY_POINTS)}
    return {**installed, **{name: path for name, path in built_in().items() if not name.startswith(REMOTE)}}


def fault_of_name(name: str) -> str | None:
    """What is wrong with a reward's name, None if nothing: it is known, a path, or a server's address."""
    if not isinstance(name, str) or not name:
        return f"{name!r} is not a reward's name"
    if ":" in name or name in known_rewards():
        return None
    hint = did_you_mean(name, known_rewards(), "did you mean {!r}? ")
    return (
        f"reward {name!r} is not known; {hint}known: {', '.join(known_rewards())}. Your own: 'module:function'; "
        "one on another machine: 'remote:http://host:port'"
    )


def load_reward(name: str, **options: Any) -> Reward:
    """A reward, ready to call.

    Args:
        name: a known name, "module:name", or "remote:URL".
        options: for its constructor, such as device="cuda", or weights as a local path or a Hub id.

    Raises:
        RewardError: no such name, module, attribute or option, or a package is missing; the message says which.
    """
    if fault := fault_of_name(name):
        raise RewardError(fault)
    target = find_target(name)
    if name.startswith(REMOTE):
        options = {"url": name.removeprefix(REMOTE), **options}
    if isinstance(target, Reward):
        if options:
            raise RewardError(f"reward {name!r} is made already and takes no options, got {', '.join(options)}")
        return target
    if inspect.isclass(target) and issubclass(target, Reward):
        return _construct(target, name, options)
    if not callable(target):
        raise RewardError(f"reward {name!r} is a {type(target).__name__}; expected a Reward or a function")
    if options:
        raise RewardError(f"reward {name!r} is a function and takes no options, got {', '.join(options)}")
    return FunctionReward(target, name)


def options_of(name: str) -> list[str]:
    """The options `load_reward` takes for a reward; none for functions and rewards that are made already."""
    target = find_target(name)
    return list(inspect.signature(target).parameters) if inspect.isclass(target) else []


def find_target(name: str) -> Any:
    """The class, reward or function behind a name.

    Raises:
        RewardError: it cannot be imported.
    """
    path = built_in()[f"{REMOTE}URL"] if name.startswith(REMOTE) else known_rewards().get(name, name)
    return import_path(path, f"reward {name!r}")


def import_path(path: str, what: str) -> Any:
    """The object that "module:name" stands for; a module may also lie in the current folder.

    Raises:
        RewardError: there is no such module or name, or a package it needs is missing.
    """
    module, _, attribute = path.partition(":")
    try:
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            # An installed command does not look in the current folder, where one's own module usually is.
            if error.name != module.partition(".")[0] or os.getcwd() in sys.path:
                raise
            sys.path.insert(0, os.getcwd())
            importlib.invalidate_caches()
            try:
                found = importlib.import_module(module)
            finally:
                sys.path.remove(os.getcwd())
        for part in attribute.split("."):
            found = getattr(found, part)
        return found
    except ImportError as error:
        raise RewardError(f"{what} cannot be imported: {missing(error)}") from error
    except (AttributeError, ValueError) as error:
        raise RewardError(f"{what} cannot be imported: {error}") from error


def missing(error: ImportError) -> str:
    """What an import lacked, and the extra that brings it, if a built-in reward names it."""
    extra = _extras().get((error.name or "").partition(".")[0])
    return f"{error}; {_installing(extra)}" if extra else str(error)


def lacking(target: Any) -> str:
    """The packages a reward needs that are not installed, and the extras if they bring them all; "" if none.

    Args:
        target: from `find_target`. It needs what it says in `needs`, and the `NEEDS` of the room's files that its class
            and the classes above it come from.
    """
    of_files = {f"{_KINDS}.{file}": literals.get("NEEDS", {}) for file, literals in _literals(_ROOM).items()}
    classes = inspect.getmro(target if inspect.isclass(target) else type(target))
    inherited = [package for cls in classes for package in of_files.get(cls.__module__, {})]
    needs = dict.fromkeys([*getattr(target, "needs", ()), *inherited])
    absent = [package for package in needs if importlib.util.find_spec(package.partition(".")[0]) is None]
    if not absent:
        return ""
    extras = dict.fromkeys(_extras().get(package, "") for package in absent)
    if all(extras):
        return f"needs {', '.join(absent)}: {_installing(','.join(extras))}"
    return f"needs {', '.join(absent)}, which {'is' if len(absent) == 1 else 'are'} not installed"


def _extras() -> dict[str, str]:
    """The extra that brings a package, for each that a built-in reward needs."""
    return {
        package: extra for literals in _literals(_ROOM).values() for package, extra in literals.get("NEEDS", {}).items()
    }


def _installing(extra: str) -> str:
    return f'pip install "diffusion-nft[{extra}]"'


def _construct(cls: type[Reward], name: str, options: Mapping[str, Any]) -> Reward:
    known = inspect.signature(cls).parameters
    unknown = [key for key in options if key not in known]
    if unknown:
        hint = did_you_mean(unknown[0], known) or f"; it takes: {', '.join(known) or 'none'}"
        raise RewardError(f"reward {name!r} has no option {unknown[0]!r}{hint}")
    try:
        return cls(**options)
    except ImportError as error:
        reason, needed = missing(error), lacking(cls)
        more = f"; it {needed}" if needed and reason == str(error) else ""
        raise RewardError(f"reward {name!r} cannot be loaded: {reason}{more}") from error
    except TypeError as error:
        raise RewardError(f"reward {name!r}: {error}") from error
