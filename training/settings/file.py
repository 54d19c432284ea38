"""A run's settings as they stand in a YAML file: presets by name, and files that begin with one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nft_pipeline.checks import did_you_mean

from ..errors import ConfigError

PRESETS = Path(__file__).parent.parent / "presets"
# A file with one of the first keys takes none of these from a preset: they describe the preset's own reward or data.
_REPLACED = (
    (
        {"reward", "rewards", "data"},
        {"reward", "rewards", "reward_description", "optimality", "optimality_at", "mix", "pool_wordings"},
    ),
    ({"prompts", "data"}, {"prompts", "held_out_prompts"}),
)


def read_settings(source: str | Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The mapping in a YAML file or preset, with `overrides`, unchecked.

    The key `preset` names a preset that supplies the settings missing in the file. But a file with rewards, prompts or
    data of its own takes none of these from the preset.

    Raises:
        ConfigError: no such file or preset, not YAML, or not a mapping.
    """
    path = Path(source)
    if not path.is_file():
        path = PRESETS / f"{source}.yaml"
    if not path.is_file():
        raise ConfigError([f"{str(source)!r} is neither a file nor a preset; presets: {', '.join(preset_names())}"])
    return {**_with_preset(_mapping(path), path.name), **(overrides or {})}


def preset_names() -> list[str]:
    """The presets there are."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_yaml(text: str) -> Any:
    """What a YAML text says. 1e-4 is a number, as in YAML 1.2; in YAML 1.1, which yaml reads, it is a text."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )
    return yaml.load(text, Loader)


def _mapping(path: Path) -> dict[str, Any]:
    import yaml

    try:
        mapping = read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path.name} is not YAML: {error}"]) from error
    if not isinstance(mapping, dict):
        raise ConfigError([f"{path.name} holds {type(mapping).__name__}, expected 'key: value' lines"])
    return mapping


def _with_preset(mapping: dict[str, Any], name: str) -> dict[str, Any]:
    """The mapping over what its preset gives."""
    if "preset" not in mapping:
        return mapping
    preset, presets = mapping.pop("preset"), preset_names()
    if preset not in presets:
        hint = did_you_mean(preset, presets)
        raise ConfigError([f"{name}: preset is {preset!r}, expected one of {', '.join(presets)}{hint}"])
    given = _with_preset(_mapping(PRESETS / f"{preset}.yaml"), preset)
    for keys, replaced in _REPLACED:
        if mapping.keys() & keys:
            given = {key: value for key, value in given.items() if key not in replaced}
    return {**given, **mapping}
