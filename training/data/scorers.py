"""The rewards of one run: each is loaded once, when it is first needed, and computes where the run does."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property

import torch

from ..rewards.contract import Reward
from ..rewards.find import Facts, Scorer, as_probability, as_scores, prompt_facts
from ..rewards.registry import load_reward, options_of
from ..settings.config import TrainConfig
from ..settings.public import public_names, public_reward
from .optimality import BY_CARD


class RunRewards:
    """A run's rewards.

    Args:
        config: the run's settings; a device among a reward's own options wins.
        device: of the run.
    """

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        self._loaded: dict[str, Reward] = {}
        self._names = {shown: name for name, shown in public_names(config.weights).items()}
        # A run that normalises scores itself wants them on the reward's own scale.
        self._as = as_probability if config.optimality in BY_CARD else as_scores

    def trained(self) -> dict[str, Scorer]:
        """Those that are trained on, by their public names.

        Each gives r by its card with an optimality of `BY_CARD`, else scores to normalise.

        Raises:
            RewardError: no such reward, or it cannot be loaded.
        """
        return {shown: self._as(self._load(name), self._facts) for shown, name in self._names.items()}

    def watched(self, own_scale: bool = True) -> dict[str, Scorer]:
        """The one that is watched by its public name, on its own scale or as r; empty without one.

        Errors as `trained`.
        """
        name = self._config.watch_reward
        scorer = as_scores if own_scale else as_probability
        return {public_reward(name): scorer(self._load(name), self._facts)} if name else {}

    def others(self) -> dict[str, Scorer]:
        """Those that sweeps measure beside, by their public names, on their own scales. Errors as `trained`."""
        taken = {*self._names, *self.watched()}
        found: dict[str, Scorer] = {}
        for name, shown in public_names(self._config.sweep_rewards).items():
            one, number = shown, 1
            while one in taken:
                one, number = f"{shown} {number + 1}", number + 1
            found[one] = as_scores(self._load(name), self._facts)
            taken.add(one)
        return found

    def identity(self, shown: str) -> str:
        """A short text that changes whenever a reward of `trained` would give other scores by the run's settings."""
        name = self._names[shown]
        told = [name, self._as.__name__, self._config.reward_options.get(name, {})]
        told += [self._facts] if self._facts else []
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @cached_property
    def _facts(self) -> Facts:
        """What the files of the run's prompts say of them; a reward gets it as metadata."""
        return prompt_facts(self._config.prompts, self._config.held_out_prompts)

    def let_go(self) -> None:
        """Free their memory; what is needed again is loaded again."""
        self._loaded.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _load(self, name: str) -> Reward:
        if name not in self._loaded:
            options = dict(self._config.reward_options.get(name, {}))
            if "device" not in options and "device" in options_of(name):
                options["device"] = self._device.type
            self._loaded[name] = load_reward(name, **options)
        return self._loaded[name]
