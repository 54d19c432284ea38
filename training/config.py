"""The settings of a training run: one dataclass, read strictly from YAML."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from .precision import Precision


class ConfigError(ValueError):
    """A run's settings that cannot be used; the message lists every fault."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a run. The presets in `training/presets` explain when to change each.

    Raises:
        ConfigError: values out of range, all of them in one report.
    """

    name: str
    base_model: str
    reward: str
    prompts: str
    reward_description: str
    licence: str
    held_out_prompts: str | None = None
    tilt: float = 2.0

    pool_size: int = 4096
    pool_steps: int = 14
    pool_batch: int = 256
    held_out_size: int = 768
    guidance_scale: float = 1.0

    rank: int = 16
    lora_targets: list[str] = field(default_factory=list)
    head_width: int = 128
    head_queries: int = 8
    head_layers: int = 2

    steps: int = 300
    batch: int = 192
    head_batch: int = 192
    lr: float = 2e-3
    head_lr: float = 2e-3
    weight_decay: float = 0.01
    ema: float = 0.98
    noise_shift: float = 2.0
    head_noise_shift: float = 4.0
    precision: Precision = "auto"
    seed: int = 0
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        faults = [fault for fault in (self._fault(entry.name) for entry in fields(self)) if fault]
        if faults:
            raise ConfigError(_report(faults))

    def _fault(self, name: str) -> str | None:
        value, hint = getattr(self, name), get_type_hints(type(self))[name]
        if name == "precision":
            return None if value in ("auto", "fp32", "bf16") else f"precision is {value!r}, expected auto, fp32 or bf16"
        if name == "lora_targets":
            right = isinstance(value, list) and all(isinstance(target, str) and target for target in value)
            return (
                None if right else f"lora_targets is {value!r}, expected a list of layer names, or [] for the default"
            )
        if hint is int:
            low = 0 if name in ("seed", "checkpoint_every") else 1
            right = type(value) is int and value >= low
            return None if right else f"{name} is {value!r}, expected a whole number from {low}"
        if hint is float:
            right = type(value) in (int, float) and math.isfinite(value) and (value > 0 or name in _MAY_BE_ZERO)
            if right and value >= 0 and (name != "ema" or value < 1):
                return None
            return f"{name} is {value!r}, expected a number {'from 0, below 1' if name == 'ema' else 'above 0'}"
        if value is None and name == "held_out_prompts":
            return None
        return None if isinstance(value, str) and value.strip() else f"{name} is {value!r}, expected text"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> TrainConfig:
        """From a mapping, strictly.

        Raises:
            ConfigError: unknown keys (with the nearest known one), missing keys and bad values, all in one report.
        """
        known = {entry.name for entry in fields(cls)}
        required = {"name", "base_model", "reward", "prompts", "reward_description", "licence"}
        faults = []
        for key in mapping:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                faults.append(f"{key!r} is not a setting" + (f"; did you mean {close[0]!r}?" if close else ""))
        faults += [f"{key!r} is missing" for key in sorted(required - set(mapping))]
        probe = object.__new__(cls)
        for entry in fields(cls):
            if entry.name in mapping:
                object.__setattr__(probe, entry.name, mapping[entry.name])
                fault = probe._fault(entry.name)
                faults += [fault] if fault else []
        if faults:
            raise ConfigError(_report(faults))
        return cls(**mapping)

    @classmethod
    def from_yaml(cls, source: str | Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
        """From a YAML file, or from a preset by its name ("shapes_warm"); `overrides` win.

        Raises:
            ConfigError: no such file or preset, not YAML, not a mapping, or as `from_mapping`.
        """
        import yaml

        path = Path(source)
        if not path.is_file():
            path = PRESETS / f"{source}.yaml"
        if not path.is_file():
            presets = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
            raise ConfigError(f"{str(source)!r} is neither a file nor a preset; presets: {presets}")
        try:
            mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path.name} is not YAML: {error}") from error
        if not isinstance(mapping, dict):
            raise ConfigError(f"{path.name} holds {type(mapping).__name__}, expected 'key: value' lines")
        return cls.from_mapping({**mapping, **(overrides or {})})


PRESETS = Path(__file__).parent / "presets"
_MAY_BE_ZERO = ("weight_decay", "ema")


def _report(faults: list[str]) -> str:
    return f"the run's settings have {len(faults)} fault{'s' * (len(faults) > 1)}:\n" + "\n".join(
        f"  - {f}" for f in faults
    )
