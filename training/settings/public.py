"""A run's settings as others may see them: in the adapter, on its card, in the report and in trackers.

Options of rewards are written by an allow-list: numbers, and the texts that built-in rewards are known to take. Every
other text, such as a token or an option of somebody's own reward, is left out, whatever it is called. A served reward's
address is left out too. What is left of texts is then searched for what looks like a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nft_pipeline.files.private import without_secrets

LEFT_OUT = "(left out)"
REMOTE = "remote:"
# The options of built-in rewards that are texts and neither an address nor a secret.
_TEXT_OPTIONS = {"weights", "tokenizer", "head", "model", "med_config", "dtype", "device", "template", "key_variable"}


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a run by name, without secrets.

    Args:
        settings: as `TrainConfig.to_dict` gives them.
    """
    public = {name: _cleaned(value) for name, value in settings.items() if name not in ("rewards", "reward")}
    public["reward"] = settings.get("reward") and public_reward(settings["reward"])
    if settings.get("watch_reward"):
        public["watch_reward"] = public_reward(settings["watch_reward"])
    public["rewards"] = {}
    for name, value in (settings.get("rewards") or {}).items():
        shown, number = public_reward(name), 1
        while shown in public["rewards"]:
            number += 1
            shown = f"{public_reward(name)} {number}"
        public["rewards"][shown] = _entry(value)
    return {name: public[name] for name in settings}


def public_reward(name: str) -> str:
    """A reward's name as others may see it: a served one without its address."""
    return "remote" if name.startswith(REMOTE) else without_secrets(name)


def _entry(value: Any) -> Any:
    """A reward's weight, or its weight and options."""
    if not isinstance(value, Mapping):
        return value
    return {str(name): _option(str(name), entry) for name, entry in value.items()}


def _option(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return without_secrets(value) if isinstance(value, str) and name in _TEXT_OPTIONS else LEFT_OUT


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {str(name): _cleaned(entry) for name, entry in value.items()}
    return [_cleaned(entry) for entry in value] if isinstance(value, list | tuple) else value
