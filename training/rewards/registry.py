"""Rewards by name: built in, by an installed package's entry point, or "module:name" for one of your own.

Nothing is imported before a reward is asked for. A package offers rewards in its pyproject.toml:

    [project.entry-points."diffusion_nft.rewards"]
    tidy = "their_package.rewards:Tidy"

What a path names is a `Reward` (the class or an instance), or a plain function of images, prompts and metadata that
returns B scores in [0, 1]; with an attribute `info`, a `RewardInfo`, it may have any other scale.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import torch
from PIL.Image import Image

from .contract import Reward, RewardError, RewardInfo, RewardOutput

ENTRY_POINTS = "diffusion_nft.rewards"
REMOTE = "remote:"
_KINDS = "nft_pipeline.training.rewards.kinds"
BUILT_IN = {
    "image_reward": f"{_KINDS}.image_reward:ImageReward",
    "pickscore": f"{_KINDS}.clip:PickScore",
    "clip_score": f"{_KINDS}.clip:ClipScore",
    "aesthetic": f"{_KINDS}.clip:Aesthetic",
    "hps_v2": f"{_KINDS}.hps:HPSv2",
    "ocr": f"{_KINDS}.ocr:OCR",
    "vlm_judge": f"{_KINDS}.judge:VLMJudge",
    "jpeg_size": f"{_KINDS}.pixels:JpegSize",
    "colourfulness": f"{_KINDS}.pixels:Colourfulness",
    "sharpness": f"{_KINDS}.pixels:Sharpness",
    "shapes_eval": f"{_KINDS}.shapes:ShapesEval",
    "shapes_warm": f"{_KINDS}.shapes:ShapesWarm",
    "likes": f"{_KINDS}.likes:Likes",
}
# Which extra brings a package that only some rewards need; import name -> extra.
EXTRAS = {
    "ImageReward": "train",
    "requests": "train",
    "rapidocr": "ocr",
    "onnxruntime": "ocr",
    "open_clip": "hps",
    "scipy": "train",
    "filelock": "train",
    "pydantic": "train",
}


class FunctionReward(Reward):
    """A plain function as a reward."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function = function
        self.info = getattr(function, "info", None) or RewardInfo(name=name, licence="your own")

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        try:
            found = self.function(images, prompts, metadata)
        except Exception as error:  # somebody else's code: whatever it raises, the run should say whose it was
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


def known_rewards() -> dict[str, str]:
    """Every name that needs no path, with the "module:name" behind it: built in, or from installed packages."""
    installed = {point.name: point.value for point in metadata.entry_points(group=ENTRY_POINTS)}
    return {**installed, **BUILT_IN}


def fault_of_name(name: str) -> str | None:
    """What is wrong with a reward's name, None if nothing: it is known, a path, or a server's address."""
    if not isinstance(name, str) or not name:
        return f"{name!r} is not a reward's name"
    if ":" in name or name in known_rewards():
        return None
    close = difflib.get_close_matches(name, known_rewards(), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
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
    path = f"{_KINDS}.remote:RemoteReward" if name.startswith(REMOTE) else known_rewards().get(name, name)
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
    """What an import lacked, and the extra that brings it."""
    extra = EXTRAS.get((error.name or "").partition(".")[0])
    return f"{error}; {_installing(extra)}" if extra else str(error)


def lacking(target: Any) -> str:
    """The packages a reward `needs` that are not installed, and the extra that brings them; "" if none."""
    absent = [package for package in getattr(target, "needs", ()) if importlib.util.find_spec(package) is None]
    return f"needs {', '.join(absent)}: {_installing(EXTRAS[absent[0]])}" if absent else ""


def _installing(extra: str) -> str:
    return f'pip install "diffusion-nft[{extra}]"'


def _construct(cls: type[Reward], name: str, options: Mapping[str, Any]) -> Reward:
    known = inspect.signature(cls).parameters
    unknown = [key for key in options if key not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; it takes: {', '.join(known) or 'none'}"
        raise RewardError(f"reward {name!r} has no option {unknown[0]!r}{hint}")
    try:
        return cls(**options)
    except ImportError as error:
        raise RewardError(f"reward {name!r} cannot be loaded: {missing(error)}") from error
    except TypeError as error:
        raise RewardError(f"reward {name!r}: {error}") from error
