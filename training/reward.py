"""What a reward is to the trainer, and how a run's `reward:` and `prompts:` lines find theirs."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from .rewards import contract
from .rewards.contract import RewardError as RewardError
from .rewards.pictures import to_pil
from .rewards.registry import REMOTE, known_rewards, load_reward


class Reward(Protocol):
    """Scores pictures: r(x0, c) in [0, 1], the probability that the picture is a good one (DESIGN M1)."""

    def __call__(self, pictures: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Pictures uint8 (B, H, W, 3) and B prompts to scores (B,)."""
        ...


_SHAPES = "nft_pipeline.training.shapes.rewards"
REWARDS = {"shapes_warm": f"{_SHAPES}:warm", "shapes_eval": f"{_SHAPES}:shapes_eval"}
PROMPTS = {
    "shapes_warm": f"{_SHAPES}:warm_prompts",
    "shapes_warm_held_out": f"{_SHAPES}:warm_prompts_held_out",
    "shapes_eval": f"{_SHAPES}:shapes_eval_training_prompts",
    "shapes_eval_held_out": f"{_SHAPES}:shapes_eval_held_out",
}


def find_reward(name: str) -> Reward:
    """A reward by its name, or by "module:function" for one of your own.

    One of `training.rewards` is wrapped: it gets PIL pictures, and its scores are mapped to [0, 1] by its card.

    Raises:
        RewardError: no such name, module or function.
    """
    if name in REWARDS or not (name in known_rewards() or name.startswith(REMOTE)):
        return _find(REWARDS.get(name, name), name, "reward", {**REWARDS, **known_rewards()})
    return as_probability(load_reward(name))


def as_probability(reward: contract.Reward) -> Reward:
    """A reward of `training.rewards` (a mix of several, for one) as the trainer calls it."""

    def scored(pictures: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        return reward.info.probability(reward(to_pil(pictures), prompts).scores).detach().cpu().numpy()

    return scored


def find_prompts(name: str) -> list[str]:
    """Prompts by the name of a built-in list, from a text file (one a line), or from "module:function".

    Raises:
        RewardError: none of these exists, or the list is empty.
    """
    if name not in PROMPTS and Path(name).is_file():
        prompts = [line.strip() for line in Path(name).read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        prompts = list(_find(PROMPTS.get(name, name), name, "prompts", PROMPTS)())
    if not prompts:
        raise RewardError(f"prompts {name!r} is an empty list; expected at least one prompt, one a line")
    return prompts


def _find(target: str, name: str, what: str, known: dict[str, str]) -> Callable:
    module, _, attribute = target.partition(":")
    if not attribute:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise RewardError(
            f"{what} {name!r} is not known; {hint}built in: {', '.join(known)}. Your own: 'module:function'"
            + (", or the path of a text file with one prompt a line" if what == "prompts" else "")
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RewardError(f"{what} {name!r} cannot be imported: {error}") from error


def checked_scores(scores: np.ndarray, n: int, name: str) -> np.ndarray:
    """The scores as float32 (n,), or an error.

    Raises:
        RewardError: another number of scores, NaN, or values outside [0, 1].
    """
    scores = np.asarray(scores, dtype=np.float32)
    if scores.shape != (n,):
        raise RewardError(f"reward {name!r} gave scores of shape {scores.shape} for {n} pictures, expected ({n},)")
    bad = ~np.isfinite(scores)
    if bad.any():
        raise RewardError(f"reward {name!r} gave {int(bad.sum())} scores of {n} that are NaN or infinite")
    if scores.min() < 0 or scores.max() > 1:
        raise RewardError(
            f"reward {name!r} gave scores from {scores.min():.4g} to {scores.max():.4g}; expected [0, 1], the "
            "probability that a picture is a good one. Map your score there first, with a threshold or a sigmoid"
        )
    return scores
