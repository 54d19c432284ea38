"""A run's settings as others may see them: in the adapter, on its card, in the report and in trackers.

Options of rewards are written by an allow-list: numbers, and the texts that built-in rewards are known to take. Every
other text, such as an option of somebody's own reward, is left out, whatever it is called. Options whose name says
that they are secret, such as a token, are a `Secret` from the moment the settings are made. A served reward's address
is left out too. What is left of texts is then searched for what looks like a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from nft_pipeline.files.private import HIDDEN, Secret, without_secrets

LEFT_OUT = "(left out)"
REMOTE = "remote:"
# The options of built-in rewards that are texts and neither an address nor a secret.
_TEXT_OPTIONS = {"weights", "tokenizer", "head", "model", "med_config", "dtype", "device", "template", "key_variable"}

_SECRET = re.compile(
    r"(?:.*[_-])?(?:tokens?|keys?|api_?key|secrets?|passw(?:or)?d|passphrase|credentials?|auth|authorization|headers?|cookies?)",
    re.IGNORECASE,
)


def with_secrets(rewards: Mapping[str, Any]) -> dict[str, Any]:
    """The setting `rewards` with each option whose name says that it is secret as a `Secret`."""

    def typed(value: Any, is_secret: bool = False) -> Any:
        if isinstance(value, Mapping):
            secret = {name: is_secret or bool(_SECRET.fullmatch(str(name))) for name in value}
            return {name: typed(entry, secret[name]) for name, entry in value.items()}
        if isinstance(value, list):
            return [typed(entry, is_secret) for entry in value]
        return Secret(value) if is_secret and isinstance(value, str) and value not in ("", HIDDEN) else value

    return {name: typed(value) for name, value in rewards.items()}


def without_secret_options(value: Any) -> Any:
    """Settings with HIDDEN in the place of every `Secret`, for files and for comparing."""
    if isinstance(value, Mapping):
        return {name: without_secret_options(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_secret_options(entry) for entry in value]
    return HIDDEN if isinstance(value, Secret) else value


def revealed(value: Any) -> Any:
    """Options of a reward as it takes them: every `Secret` as its text."""
    if isinstance(value, Mapping):
        return {name: revealed(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [revealed(entry) for entry in value]
    return value.reveal() if isinstance(value, Secret) else value


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a run by name, without secrets.

    Args:
        settings: as `TrainConfig.to_dict` gives them.
    """
    public = {name: _cleaned(value) for name, value in settings.items() if name not in ("rewards", "reward")}
    public["reward"] = settings.get("reward") and public_reward(settings["reward"])
    if settings.get("watch_reward"):
        public["watch_reward"] = public_reward(settings["watch_reward"])
    if settings.get("sweep_rewards"):
        public["sweep_rewards"] = [public_reward(name) for name in settings["sweep_rewards"]]
    rewards = settings.get("rewards") or {}
    public["rewards"] = {shown: _entry(rewards[name]) for name, shown in public_names(rewards).items()}
    return {name: public[name] for name in settings}


def public_names(names: Iterable[str]) -> dict[str, str]:
    """Rewards' names with those that others may see, each of them once: "remote", "remote 2"."""
    public: dict[str, str] = {}
    for name in names:
        shown, number = public_reward(name), 1
        while shown in public.values():
            number += 1
            shown = f"{public_reward(name)} {number}"
        public[name] = shown
    return public


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
