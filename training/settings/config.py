"""All settings of a training run, as one strict dataclass made of sections; file.py reads it from YAML.

Each section of the settings is a class in this folder: there every setting has its default, its check and its text.
What must hold between sections stands here. Whoever makes a `TrainConfig` gets all faults in one report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nft_pipeline.checks import shown, value_faults
from nft_pipeline.files.private import without_secrets

from ..elsewhere import hint_for
from ..errors import ConfigError
from .choices import Kind
from .data import DataSettings
from .file import read_settings
from .learning import AdapterSettings, OptimiserSettings
from .objective import ObjectiveSettings, objective_faults
from .public import public_reward, with_secrets, without_secret_options
from .run import MachineSettings, RunSettings
from .sampling import RoundSettings, SamplingSettings
from .show import ShowSettings


def _in_words(value: Any) -> str:
    """A setting's value as errors show it: options of rewards may be secret, so of a mapping only the names."""
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(without_secrets(str(name)) for name in value) or 'nothing in it'}"
    hint = " (YAML reads on, off, yes and no as true and false; put a word into quotes)" * isinstance(value, bool)
    return without_secrets(shown(value)) + hint


# The last base comes first in `fields` and so in settings.yaml: these are the sections from bottom to top.
@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    ShowSettings,
    MachineSettings,
    OptimiserSettings,
    AdapterSettings,
    RoundSettings,
    SamplingSettings,
    ObjectiveSettings,
    DataSettings,
    RunSettings,
):
    """All settings of a run. docs/settings.md explains each, and so does `diffusion-nft train --explain NAME`.

    Where the pictures come from decides the kind of run:

        data: None, rounds: 0     offline, a pool is sampled from the base model and scored first
        data: a folder            offline, its pictures with their scores or likes (training/data/folder.py)
        rounds: above 0           online, every round samples with the old model (training/learn/online.py)

    A function that needs one section takes that, and gets the whole config: a `TrainConfig` is each of its sections.

    Raises:
        ConfigError: values out of range, or that do not go together, all of them in one report.
    """

    def __post_init__(self) -> None:
        faults = (
            value_faults(vars(self), self.checks, show=_in_words)
            or self.data_faults() + self._faults_between_sections()
        )
        if faults:
            raise ConfigError(faults)
        object.__setattr__(self, "rewards", with_secrets(self.rewards))

    @property
    def kind(self) -> Kind:
        """The objective, chosen if none was: `positive` where the pictures are the base model's, else `policy`."""
        if self.objective is not None:
            return self.objective
        is_foreign = self.data is not None and not self.made_by_base
        return "policy" if self.online or is_foreign else "positive"

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.rounds * self.round_steps if self.online else self.steps

    def to_dict(self) -> dict[str, Any]:
        """Every setting by name, flat, as `from_mapping` takes it; of secrets only that there is one."""
        return without_secret_options(asdict(self))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> TrainConfig:
        """From a mapping, strictly.

        Raises:
            ConfigError: unknown keys (with the nearest known one), missing keys and bad values, all in one report.
        """
        # Nothing behind "watch_reward:" or --set watch_reward= is null to YAML, and no text to whoever wrote it.
        texts = {entry.name for entry in fields(cls) if entry.default == ""}
        mapping = {name: "" if value is None and name in texts else value for name, value in mapping.items()}
        faults = [f"{key!r} is not a setting{hint_for(key, cls.checks)}" for key in mapping if key not in cls.checks]
        required = {entry.name for entry in fields(cls) if entry.default is entry.default_factory is MISSING}
        faults += [f"{key!r} is missing" for key in sorted(required - set(mapping))]
        faults += value_faults(mapping, cls.checks, show=_in_words)
        if faults:
            raise ConfigError(faults)
        return cls(**mapping)

    @classmethod
    def from_yaml(cls, source: str | Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
        """From a YAML file, or from a preset by its name ("shapes_warm"); `overrides` win.

        Raises:
            ConfigError: no such file or preset, not YAML, not a mapping, or as `from_mapping`.
        """
        return cls.from_mapping(read_settings(source, overrides))

    def _faults_between_sections(self) -> list[str]:
        """Settings that are sound one by one and do not go together, one sentence each."""
        faults = objective_faults(self, self.kind)
        if self.authors_trainer and not (self.online and self.optimality == "group"):
            faults.append(
                f"authors_trainer is true with rounds {self.rounds} and optimality {self.optimality!r}: their trainer "
                "samples in rounds and compares within a prompt; set rounds above 0 and optimality: group"
            )
        if self.authors_trainer and (self.adaptive_noise or self.noise_spread or self.noise_within != [0, 1]):
            faults.append(
                "authors_trainer is true, and so their trainer's noise levels, the sampler's own, are taken: leave out "
                "adaptive_noise, noise_spread and noise_within"
            )
        if self.negative_prompt and self.guidance_scale <= 1:
            faults.append(
                f"negative_prompt is {shown(self.negative_prompt)} with guidance_scale {self.guidance_scale:g}: "
                "without classifier-free guidance nothing reads it; set guidance_scale above 1, or leave it out"
            )
        if self.data is not None and self.online:
            faults.append(
                f"data is {self.data!r} and rounds {self.rounds}: a folder is for offline runs, rounds for online "
                "ones; leave one of them out"
            )
        if self.online and self.kind == "positive":
            faults.append("objective is 'positive' and rounds above 0: online runs train 'policy' or 'paper'")
        if self.watch_reward and self.watch_reward in (self.reward, *self.rewards):
            faults.append(
                f"watch_reward is {public_reward(self.watch_reward)!r}, which is trained on; watch one that is not"
            )
        known = {self.reward: "trained on", **dict.fromkeys(self.rewards, "trained on"), self.watch_reward: "watched"}
        for name in self.sweep_rewards:
            if name in known:
                faults.append(
                    f"sweep_rewards has {public_reward(name)!r}, which is {known[name]} and measured anyway; "
                    "leave it out"
                )
        if self.keep_best and not (self.online and self.sweep_every and self.sweep_size and 1 in self.sweep_strengths):
            faults.append(
                "keep_best is true, which needs an online run with sweeps to compare: rounds, sweep_every and "
                "sweep_size above 0, and 1 among sweep_strengths"
            )
        if self.stop_when_hacked and not (self.online and self.sweep_every and self.sweep_size and self.watch_reward):
            faults.append(
                "stop_when_hacked is true, which needs an online run that looks for it: rounds, sweep_every and "
                "sweep_size above 0, and a watch_reward"
            )
        if self.optimality == "group" and not self.online:
            faults.append("optimality is 'group', which needs groups of one prompt (rounds above 0); use top or rank")
        return faults
