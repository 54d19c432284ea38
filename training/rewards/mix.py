"""Several rewards as one: the `rewards:` line of a run's settings.

    rewards: {image_reward: 1.0, ocr: 0.5, "my_module:my_reward": 0.2}
    rewards: {pickscore: {weight: 1.0, device: cuda, weights: models/pickscore}, jpeg_size: -0.1}

Each reward's card turns scores into probabilities (r_i in [0, 1], larger is better); the mix is their weighted mean,

    r = sum_i |w_i| r'_i / sum_i |w_i|,    r'_i = r_i, or 1 - r_i where w_i is negative,

again a probability (docs/theory.md, M1). Weights count by their ratio alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from .contract import Reward, RewardError, RewardInfo, RewardOutput
from .registry import fault_of_name, load_reward, options_of


@dataclass(frozen=True)
class RewardEntry:
    """One entry of a `rewards:` line: a name, its weight, and options for its constructor."""

    name: str
    weight: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


def parse_rewards(spec: object) -> list[RewardEntry]:
    """Read a `rewards:` value, a mapping of names to weights, or to mappings with a weight and options.

    Raises:
        RewardError: every fault in one report: unknown names with the nearest known one, weights that are no numbers,
            nothing but zeros, or no mapping at all.
    """
    if not isinstance(spec, Mapping) or not spec:
        raise RewardError(f"rewards is {spec!r}, expected a mapping of names to weights such as {{image_reward: 1.0}}")
    faults, entries = [], []
    for name, value in spec.items():
        options = dict(value) if isinstance(value, Mapping) else {}
        weight = options.pop("weight", 1.0) if isinstance(value, Mapping) else value
        fault = fault_of_name(name)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            fault = fault or f"weight of {name!r} is {weight!r}, expected a number"
        if fault:
            faults.append(fault)
        else:
            entries.append(RewardEntry(name, float(weight), options))
    if not faults and not any(entry.weight for entry in entries):
        faults.append("every weight is 0, expected at least one other")
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise RewardError(f"rewards has {len(faults)} fault{'s' * (len(faults) > 1)}:\n{lines}")
    return entries


class RewardMix(Reward):
    """The weighted mean of several rewards. Details hold each one's own scores and details, by its name.

    Args:
        parts: reward and weight, by name.
    """

    def __init__(self, parts: Mapping[str, tuple[Reward, float]]) -> None:
        self.parts = dict(parts)
        self.total = sum(abs(weight) for _, weight in parts.values())
        cards = [reward.info for reward, _ in parts.values()]
        versions = [f"{name}@{reward.info.version}*{weight:g}" for name, (reward, weight) in parts.items()]
        self.info = RewardInfo(
            name=" + ".join(f"{weight:g} {name}" for name, (_, weight) in parts.items()),
            licence=", ".join(dict.fromkeys(card.licence for card in cards)),
            memory_gb=sum(card.memory_gb for card in cards),
            version=" ".join(versions) if all(card.version for card in cards) else "",
        )
        # Each reward keeps to its own batch; splitting here as well would only make smaller ones.
        self.batch = max((reward.batch for reward, _ in parts.values()), default=1)

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """True if every reward is."""
        return all(reward.differentiable for reward, _ in self.parts.values())

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """The weighted mean r in [0, 1]; `details` has each reward's own scores by its name."""
        return self._mix(images, prompts, metadata)

    def score_tensor(self, images: Tensor, prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """The same of a tensor (B, 3, H, W), through which gradients flow if every reward has them."""
        return self._mix(images, prompts, metadata)

    def _mix(self, images: Any, prompts: list[str], metadata: Sequence[Mapping[str, Any]]) -> RewardOutput:
        mixed: Any = 0.0
        details: dict[str, list[Any]] = {}
        for name, (reward, weight) in self.parts.items():
            output = reward(images, prompts, metadata)
            r = reward.info.probability(output.scores).to("cpu")
            mixed = mixed + abs(weight) / self.total * (r if weight >= 0 else 1 - r)
            details[name] = output.scores.tolist()
            details |= {f"{name}.{key}": values for key, values in output.details.items()}
        return RewardOutput(torch.as_tensor(mixed), details)


def load_rewards(spec: object, **options: Any) -> RewardMix:
    """The rewards of a `rewards:` value, ready to call as one.

    Args:
        spec: as `parse_rewards`.
        options: for every reward that has such an option (device="cuda"); an entry's own options win.

    Raises:
        RewardError: as `parse_rewards` and `load_reward`.
    """
    parts = {}
    for entry in parse_rewards(spec):
        general = {key: value for key, value in options.items() if key in options_of(entry.name)}
        parts[entry.name] = (load_reward(entry.name, **{**general, **entry.options}), entry.weight)
    return RewardMix(parts)
