"""Settings as a run's files hold them, compared with today's: files outlive the version that wrote them.

A setting that a file lacks counts as its default, since the file is of a version that did not have that setting. So the
default of a new setting has to do what the versions without it did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from .config import TrainConfig
from .public import with_secrets, without_secret_options

_FIRST = """
adaptive_noise base_model baseline batch checkpoint_every data ema eta0 gradient_checkpointing group_size guidance_scale
head_batch head_layers head_lr head_noise_shift head_queries head_width held_out_prompts held_out_size keep_best
keep_last licence lora_targets lr made_by_base micro_batch name noise_shift num_frames objective old optimality
optimality_at optimizer pool_batch pool_size pool_steps precision prompts quantise rank refit resolution reward
reward_description rewards round_prompts round_steps rounds sample_prompts samples_every seed self_normalise steps
sweep_every sweep_size sweep_strengths tilt trackers watch_reward weight_decay
"""
# The settings there were when pools held nothing but a hash of them. Never add to these: see training/data/pool.py.
FIRST_SETTINGS = frozenset(_FIRST.split())


def default_settings() -> dict[str, Any]:
    """Every setting that need not be given, with its default."""
    plain = {entry.name: entry.default for entry in fields(TrainConfig) if entry.default is not MISSING}
    made = {e.name: e.default_factory() for e in fields(TrainConfig) if e.default_factory is not MISSING}
    return plain | made


def with_defaults(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a file, those that it lacks at their defaults."""
    return default_settings() | dict(saved)


def that_matter(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide where a run arrives: all but `TrainConfig.may_change`, and no secrets."""
    matter = {name: value for name, value in settings.items() if name not in TrainConfig.may_change}
    if isinstance(rewards := matter.get("rewards"), Mapping):  # files of earlier versions hold secrets as they are
        matter["rewards"] = without_secret_options(with_secrets(rewards))
    return matter
