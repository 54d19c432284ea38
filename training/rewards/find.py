"""What a reward is to the trainer, and how a run's `reward:` and `prompts:` lines find theirs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from nft_pipeline.checks import did_you_mean

from . import contract
from .contract import RewardError
from .pictures import to_pil
from .registry import load_reward


class Scorer(Protocol):
    """Scores pictures: r(x0, c) in [0, 1], the probability that the picture is a good one (docs/theory.md, M1), or on
    a scale of its own that training/data/optimality.py turns into r."""

    def __call__(self, pictures: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Pictures uint8 (B, H, W, 3) and B prompts to scores (B,)."""
        ...


def find_reward(name: str, *, own_scale: bool = False, **options: object) -> Scorer:
    """A reward of `training.rewards` as the trainer calls it; NaN where it has no score.

    Args:
        name, options: as `load_reward`: a known name, "module:function" for one of your own, or "remote:URL".
        own_scale: give the reward's own scores, the larger the better, for a run that normalises them itself; by
            default they are mapped to r in [0, 1] by the reward's card.

    Raises:
        RewardError: no such name, module, function or option.
    """
    reward = load_reward(name, **options)
    return as_scores(reward) if own_scale else as_probability(reward)


def as_probability(reward: contract.Reward) -> Scorer:
    """A reward of `training.rewards` (a mix of several, for one) as the trainer calls it."""

    def scored(pictures: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        scores = reward(to_pil(pictures), prompts, allow_missing=True).scores
        return reward.info.probability(scores).detach().cpu().numpy()

    return scored


def as_scores(reward: contract.Reward) -> Scorer:
    """A reward's own scores, negated where smaller ones are better."""
    sign = 1.0 if reward.info.larger_is_better else -1.0

    def scored(pictures: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        return sign * reward(to_pil(pictures), prompts, allow_missing=True).scores.detach().cpu().numpy()

    return scored


def find_prompts(name: str) -> list[str]:
    """Prompts from a text file (one per line), from "module:function", or by the name of a built-in list.

    Raises:
        RewardError: none of these exists, or the list is empty.
    """
    if name.isidentifier() and (make := _built_in().get(name)):  # its name wins over a file of the same name
        prompts = make()
    elif Path(name).is_file():
        prompts = [line.strip() for line in Path(name).read_text(encoding="utf-8").splitlines() if line.strip()]
    elif ":" in name:
        prompts = list(_imported(name)())
    else:
        raise RewardError(
            f"prompts {name!r} is not known; {did_you_mean(name, _built_in(), 'did you mean {!r}? ')}built in: "
            f"{', '.join(_built_in())}. Your own: 'module:function', or the path of a text file with one prompt "
            "per line"
        )
    if not prompts:
        raise RewardError(f"prompts {name!r} is an empty list; expected at least one prompt, one per line")
    return prompts


def _imported(name: str) -> Callable:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RewardError(f"prompts {name!r} cannot be imported: {error}") from error


def _built_in() -> dict[str, Callable[[], list[str]]]:
    from ..emoji.prompts import PROMPTS as EMOJI
    from ..shapes.prompts import PROMPTS as SHAPES  # reads the shapes world, which needs scipy

    return {**SHAPES, **EMOJI}
