"""What a reward is to the trainer, and how a run's `reward:` and `prompts:` lines find theirs."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nft_pipeline.checks import did_you_mean, shown

from . import contract
from .contract import RewardError
from .pictures import to_pil
from .registry import load_reward

Facts = Mapping[str, Mapping[str, Any]]  # by a prompt's text


class Scorer(Protocol):
    """Scores pictures: r(x0, c) in [0, 1], the probability that the picture is a good one (docs/theory.md, M1), or on
    a scale of its own that training/data/optimality.py turns into r."""

    def __call__(self, pictures: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Pictures uint8 (B, H, W, 3) and B prompts to scores (B,)."""
        ...


def find_reward(name: str, *, own_scale: bool = False, facts: Facts | None = None, **options: object) -> Scorer:
    """A reward of `training.rewards` as the trainer calls it; NaN where it has no score.

    Args:
        facts: what is known of prompts beside their text.
        name, options: as `load_reward`: a known name, "module:function" for one of your own, or "remote:URL".
        own_scale: give the reward's own scores, the larger the better, for a run that normalises them itself; by
            default they are mapped to r in [0, 1] by the reward's card.

    Raises:
        RewardError: no such name, module, function or option.
    """
    reward = load_reward(name, **options)
    return (as_scores if own_scale else as_probability)(reward, facts)


def as_probability(reward: contract.Reward, facts: Facts | None = None) -> Scorer:
    """A reward of `training.rewards` (a mix of several, for one) as the trainer calls it.

    `facts` of a picture's prompt are its metadata.
    """

    def scored(pictures: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        scores = reward(to_pil(pictures), prompts, _of(prompts, facts), allow_missing=True).scores
        return reward.info.probability(scores).detach().cpu().numpy()

    return scored


def as_scores(reward: contract.Reward, facts: Facts | None = None) -> Scorer:
    """A reward's own scores, negated where smaller ones are better; `facts` as in `as_probability`."""
    sign = 1.0 if reward.info.larger_is_better else -1.0

    def scored(pictures: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        output = reward(to_pil(pictures), prompts, _of(prompts, facts), allow_missing=True)
        return sign * output.scores.detach().cpu().numpy()

    return scored


def _of(prompts: Sequence[str], facts: Facts | None) -> list[Mapping[str, Any]] | None:
    return [facts.get(prompt, {}) for prompt in prompts] if facts else None


def find_prompts(name: str) -> list[str]:
    """Prompts from a file, from "module:function", or by the name of a built-in list.

    A file has one prompt per line. In one whose name ends in .jsonl each line is a JSON object with the key "prompt",
    and what else it has are facts of that prompt, see `prompt_facts`.

    Raises:
        RewardError: none of these exists, the list is empty, or lines of a .jsonl file have faults.
    """
    if name.isidentifier() and (make := _built_in().get(name)):  # its name wins over a file of the same name
        prompts = make()
    elif _has_facts(name):
        prompts = [row["prompt"] for row in _rows(name)]
    elif Path(name).is_file():
        prompts = [line.strip() for line in Path(name).read_text(encoding="utf-8").splitlines() if line.strip()]
    elif ":" in name:
        prompts = list(_imported(name)())
    else:
        raise RewardError(
            f"prompts {name!r} is not known; {did_you_mean(name, _built_in(), 'did you mean {!r}? ')}built in: "
            f"{', '.join(_built_in())}. Your own: 'module:function', or the path of a text file with one prompt "
            "per line, or of a .jsonl file"
        )
    if not prompts:
        raise RewardError(f"prompts {name!r} is an empty list; expected at least one prompt, one per line")
    return prompts


def prompt_facts(*names: str | None) -> Facts:
    """What prompts' files say of each prompt, by its text; a reward gets it as the picture's `metadata`.

    Args:
        names: as `find_prompts` takes them; files that end in .jsonl have facts, and others have none.

    Returns:
        The whole object of each line, "prompt" among it.

    Raises:
        RewardError: as `find_prompts`, or the same prompt stands twice with different facts.
    """
    facts: dict[str, Mapping[str, Any]] = {}
    for name in dict.fromkeys(names):
        for row in _rows(name) if name is not None and _has_facts(name) else ():
            if facts.setdefault(row["prompt"], row) != row:
                raise RewardError(
                    f"prompts {name!r}: {row['prompt']!r} stands twice with different facts, and a reward could "
                    "not tell their pictures apart. Make the two texts differ"
                )
    return facts


def _has_facts(name: str) -> bool:
    return name.endswith(".jsonl") and Path(name).is_file()


def _rows(name: str) -> list[dict[str, Any]]:
    """The objects of a .jsonl file of prompts."""
    rows = []
    for number, line in enumerate(Path(name).read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RewardError(f"prompts {name!r}: line {number} is no JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise RewardError(
                f'prompts {name!r}: line {number} is {shown(row)}, expected an object with a text, {{"prompt": ...}}'
            )
        rows.append(row)
    return rows


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
