"""The settings of a training run: one dataclass, strict; training/settings/file.py reads it from YAML.

One table, `_CHECKS`, says what every setting may be; faults between settings that are sound one by one stand in
`_agreement_faults`. Whoever makes a `TrainConfig` gets all faults in one report.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .choices import BASELINES, KINDS, METHODS, OPTIMIZERS, QUANTISE, SCHEDULES, Baseline, Kind, Method, Precision
from .file import read_settings


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a run. The presets in `training/presets` explain when to change each.

    Where the pictures come from decides the kind of run:

        data: None, rounds: 0     offline, a pool is sampled from the base model and scored first
        data: a folder            offline, its pictures with their scores or likes (training/data/folder.py)
        rounds: above 0           online, every round samples with the old model (training/learn/online.py)

    Raises:
        ConfigError: values out of range, all of them in one report.
    """

    name: str
    base_model: str
    reward_description: str
    licence: str
    reward: str = ""
    rewards: dict[str, Any] = field(default_factory=dict)  # name: weight, or name: {weight: ..., option: ...}
    prompts: str | None = None
    held_out_prompts: str | None = None
    data: str | None = None
    made_by_base: bool = False
    optimality: Method = "raw"
    optimality_at: float | None = None

    objective: Kind | None = None
    tilt: float = 2.0
    baseline: Baseline = "alpha"
    eta0: float | None = None
    refit: float = 0.0
    self_normalise: bool = False

    pool_size: int = 4096
    pool_steps: int = 14
    pool_batch: int = 256
    held_out_size: int = 768
    guidance_scale: float = 1.0
    resolution: int | None = None
    num_frames: int | None = None

    rounds: int = 0
    round_prompts: int = 48
    group_size: int = 24
    round_steps: int = 2
    old: str | float = "copy"

    rank: int = 16
    lora_targets: list[str] = field(default_factory=list)
    head_width: int = 128
    head_queries: int = 8
    head_layers: int = 2

    steps: int = 300
    batch: int = 192
    head_batch: int = 96
    micro_batch: int = 0
    lr: float = 2e-3
    head_lr: float = 2e-3
    weight_decay: float = 0.01
    ema: float = 0.98
    noise_shift: float = 2.0
    head_noise_shift: float = 4.0
    adaptive_noise: bool = False
    gradient_checkpointing: bool = False
    quantise: str = "none"
    optimizer: str = "adamw"
    precision: Precision = "auto"
    seed: int = 0
    checkpoint_every: int = 100
    keep_last: int = 1
    keep_best: bool = False

    samples_every: int = 100
    sample_prompts: list[str] = field(default_factory=list)
    sweep_size: int = 128
    sweep_strengths: list[float] = field(default_factory=lambda: [0.0, 0.5, 1.0, 1.5, 2.0])
    sweep_every: int = 0
    watch_reward: str = ""
    trackers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        faults = _faults({entry.name: getattr(self, entry.name) for entry in fields(self)})
        if faults:
            raise ConfigError(faults)

    @property
    def online(self) -> bool:
        return self.rounds > 0

    @property
    def kind(self) -> Kind:
        """The objective, chosen if none was: `positive` where the pictures are the base model's, else `policy`."""
        return _kind({entry.name: getattr(self, entry.name) for entry in fields(self)})

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.rounds * self.round_steps if self.online else self.steps

    @property
    def weights(self) -> dict[str, float]:
        """Rewards by name with their weights; empty where the data brings its scores."""
        weights = {name: _entry(value)[0] for name, value in self.rewards.items()}
        return {self.reward: 1.0} if self.reward else weights

    @property
    def reward_options(self) -> dict[str, dict[str, Any]]:
        """What each of `rewards` is made with, by name."""
        return {name: _entry(value)[1] for name, value in self.rewards.items()}

    @property
    def reward_name(self) -> str:
        """For reports: "aesthetic" or "aesthetic + 0.5 text"."""
        parts = [name if weight == 1 else f"{weight:g} {name}" for name, weight in self.weights.items()]
        return " + ".join(parts) or "the scores in metadata.jsonl"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> TrainConfig:
        """From a mapping, strictly.

        Raises:
            ConfigError: unknown keys (with the nearest known one), missing keys and bad values, all in one report.
        """
        known = {entry.name: entry for entry in fields(cls)}
        faults = []
        for key in mapping:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                faults.append(f"{key!r} is not a setting" + (f"; did you mean {close[0]!r}?" if close else ""))
        required = [name for name, entry in known.items() if entry.default is entry.default_factory is MISSING]
        faults += [f"{key!r} is missing" for key in sorted(set(required) - set(mapping))]
        given = {name: mapping[name] for name in known if name in mapping}
        faults += _faults(given, complete=not faults)
        if faults:
            raise ConfigError(faults)
        return cls(**given)

    @classmethod
    def from_yaml(cls, source: str | Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
        """From a YAML file, or from a preset by its name ("shapes_warm"); `overrides` win.

        Raises:
            ConfigError: no such file or preset, not YAML, not a mapping, or as `from_mapping`.
        """
        return cls.from_mapping(read_settings(source, overrides))


TRACKERS = ("wandb", "trackio")

Check = tuple[Callable[[Any], bool], str]


def _number(low: float, *, inclusive: bool = False, below: float = math.inf) -> Check:
    def check(value: Any) -> bool:
        right = type(value) in (int, float) and math.isfinite(value) and value < below
        return right and (value > low or (inclusive and value == low))

    words = f"from {low:g}" if inclusive else f"above {low:g}"
    return check, f"a number {words}" + (f", below {below:g}" if math.isfinite(below) else "")


def _whole(low: int) -> Check:
    return lambda value: type(value) is int and value >= low, f"a whole number from {low}"


def _choice(*known: str) -> Check:
    return lambda value: value in known, f"{', '.join(known[:-1])} or {known[-1]}"


def _optional(check: Check) -> Check:
    return lambda value: value is None or check[0](value), f"{check[1]}, or nothing"


_TEXT: Check = (lambda value: isinstance(value, str) and bool(value.strip()), "text")
_TEXT_OR_NONE: Check = (lambda value: isinstance(value, str) and (value == "" or bool(value.strip())), "text")
_FLAG: Check = (lambda value: isinstance(value, bool), "true or false")


def _entry(value: Any) -> tuple[Any, dict[str, Any]]:
    """Weight and options of one of `rewards`."""
    if not isinstance(value, dict):
        return value, {}
    return value.get("weight", 1.0), {key: option for key, option in value.items() if key != "weight"}


def _are_weights(value: Any) -> bool:
    right = isinstance(value, dict) and all(_TEXT[0](name) for name in value)
    return right and all(_number(0)[0](_entry(weight)[0]) for weight in value.values())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(target, str) and target for target in value)


def _are_strengths(value: Any) -> bool:
    right = isinstance(value, list) and all(type(entry) in (int, float) and 0 <= entry <= 100 for entry in value)
    return right and 0 in value and len(set(value)) == len(value) > 1


def _is_schedule(value: Any) -> bool:
    return _number(0, inclusive=True, below=1)[0](value) or (isinstance(value, str) and value in SCHEDULES)


def _are_trackers(value: Any) -> bool:
    return isinstance(value, list) and all(entry in TRACKERS for entry in value) and len(set(value)) == len(value)


# name -> (is it sound?, what was expected). Checks must not raise, whatever YAML holds.
_CHECKS: dict[str, Check] = {
    **dict.fromkeys(("name", "base_model", "reward_description", "licence"), _TEXT),
    **dict.fromkeys(("prompts", "held_out_prompts", "data"), _optional(_TEXT)),
    **dict.fromkeys(("reward", "watch_reward"), _TEXT_OR_NONE),
    "rewards": (_are_weights, "names with weights above 0, such as {aesthetic: 1.0, text: 0.5}"),
    "made_by_base": _FLAG,
    "optimality": _choice(*METHODS),
    "optimality_at": _optional((_number(-math.inf)[0], "a number")),
    "objective": _optional(_choice(*KINDS)),
    "tilt": _number(0),
    "baseline": _choice(*BASELINES),
    "eta0": _optional(_number(0)),
    "refit": (lambda value: _number(0, inclusive=True)[0](value) and value <= 1, "a number from 0 to 1"),
    **dict.fromkeys(("pool_size", "pool_steps", "pool_batch", "held_out_size"), _whole(1)),
    "guidance_scale": _number(0),
    "resolution": _optional(_whole(8)),
    "num_frames": _optional(_whole(1)),
    "rounds": _whole(0),
    **dict.fromkeys(("round_prompts", "round_steps"), _whole(1)),
    "group_size": _whole(2),
    "old": (_is_schedule, f"{', '.join(SCHEDULES)}, or a number from 0, below 1"),
    "rank": _whole(1),
    "lora_targets": (_are_texts, "a list of layer names, or [] for the default"),
    **dict.fromkeys(("head_width", "head_queries", "head_layers"), _whole(1)),
    **dict.fromkeys(("steps", "batch", "head_batch"), _whole(1)),
    "micro_batch": _whole(0),
    **dict.fromkeys(("lr", "head_lr", "noise_shift", "head_noise_shift"), _number(0)),
    "weight_decay": _number(0, inclusive=True),
    "ema": _number(0, inclusive=True, below=1),
    **dict.fromkeys(("gradient_checkpointing", "adaptive_noise", "self_normalise"), _FLAG),
    "quantise": _choice(*QUANTISE),
    "optimizer": _choice(*OPTIMIZERS),
    "precision": _choice("auto", "fp32", "bf16", "fp16"),
    "seed": _whole(0),
    "checkpoint_every": _whole(0),
    "keep_last": _whole(1),
    "keep_best": _FLAG,
    **dict.fromkeys(("samples_every", "sweep_size", "sweep_every"), _whole(0)),
    "sample_prompts": (_are_texts, "a list of prompts, or [] for some of the held-out ones"),
    "sweep_strengths": (_are_strengths, "a list of different strengths from 0 on, 0 and at least one other"),
    "trackers": (_are_trackers, f"a list of {' and '.join(TRACKERS)}, or [] for TensorBoard alone"),
}


def _faults(values: Mapping[str, Any], complete: bool = True) -> list[str]:
    """Every fault of the settings; those between settings only where each is sound and none is missing."""
    faults = [
        f"{name} is {value!r}, expected {_CHECKS[name][1]}"
        for name, value in values.items()
        if not _CHECKS[name][0](value)
    ]
    return faults or (_agreement_faults(values) if complete else [])


def _agreement_faults(values: Mapping[str, Any]) -> list[str]:
    defaults = {entry.name: entry.default for entry in fields(TrainConfig) if entry.default is not MISSING}
    defaults |= {"rewards": {}, "sweep_strengths": [1]}
    v = {**defaults, **values}
    faults = []
    if v["data"] is not None and v["rounds"]:
        faults.append(
            f"data is {v['data']!r} and rounds {v['rounds']}: a folder is for offline runs, rounds for online ones; "
            "leave one of them out"
        )
    if v["data"] is None:
        if not v["reward"] and not v["rewards"]:
            faults.append("'reward' is missing: without data the run samples pictures itself, and scores them")
        if v["prompts"] is None:
            faults.append("'prompts' is missing: without data the run samples pictures itself")
    if v["reward"] and v["rewards"]:
        faults.append(f"reward is {v['reward']!r} and rewards {v['rewards']!r}: for several, put all into rewards")
    kind = _kind(v)
    if v["rounds"] and kind == "positive":
        faults.append("objective is 'positive' and rounds above 0: online runs train 'policy' or 'paper'")
    if v["eta0"] is not None and kind != "policy":
        faults.append(f"eta0 is {v['eta0']:g} with objective {kind!r}: the anchor belongs to 'policy'")
    if v["refit"] and kind != "policy":
        faults.append(f"refit is {v['refit']:g} with objective {kind!r}: it belongs to 'policy'")
    if v["self_normalise"] and kind != "policy":
        faults.append(f"self_normalise with objective {kind!r}: it belongs to 'policy', and 'paper' always is")
    if len(v["rewards"]) > 1 and v["optimality"] in ("likes", "threshold"):
        faults.append(f"optimality is {v['optimality']!r} with {len(v['rewards'])} rewards; use group, rank or sigmoid")
    if v["optimality"] == "threshold" and v["optimality_at"] is None:
        faults.append("optimality is 'threshold' and optimality_at is missing: from which score on is a picture liked?")
    if v["watch_reward"] and v["watch_reward"] in (v["reward"], *v["rewards"]):
        faults.append(f"watch_reward is {v['watch_reward']!r}, which is trained on; watch one that is not")
    if v["keep_best"] and not (v["rounds"] and v["sweep_every"] and v["sweep_size"] and 1 in v["sweep_strengths"]):
        faults.append(
            "keep_best is true, which needs an online run with sweeps to compare: rounds, sweep_every and sweep_size "
            "above 0, and 1 among sweep_strengths"
        )
    if v["optimality"] == "group" and not v["rounds"]:
        faults.append("optimality is 'group', which needs groups of one prompt (rounds above 0); use rank or sigmoid")
    return faults


def _kind(values: Mapping[str, Any]) -> Kind:
    """The objective that was chosen, or that fits where the pictures come from."""
    if values["objective"] is not None:
        return values["objective"]
    foreign = values["data"] is not None and not values["made_by_base"]
    return "policy" if values["rounds"] or foreign else "positive"
