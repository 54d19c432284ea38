"""What ships with the package: two small base models and adapters for them, found by name.

A name is a shipped one only as it stands: "shapes" is the shipped model, "./shapes" a folder of yours. ComfyUI's node
pack leaves out the larger model and its adapters (.comfyignore), whose names then mean nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

_HERE = Path(__file__).parent
MODELS = tuple(name for name in ("shapes", "emoji") if (_HERE / name).is_dir())
ADAPTERS = tuple(
    name
    for name in ("shapes-warm", "shapes-follow", "emoji-3d", "emoji-words", "emoji-likes")
    if (_HERE / name).is_dir()
)


def shipped_model(name: str) -> Path | None:
    """The folder of a shipped base model, None if `name` is none."""
    return _HERE / name if name in MODELS else None


def shipped_adapter(name: str) -> Path | None:
    """The folder of a shipped adapter, None if `name` is none."""
    return _HERE / name if name in ADAPTERS else None


def shipped_adapters_of(model: str) -> list[str]:
    """The shipped adapters that were trained on a base model; none for a model that is not shipped."""
    configs = {name: json.loads((_HERE / name / "nft_config.json").read_text(encoding="utf-8")) for name in ADAPTERS}
    return [name for name, config in configs.items() if config["base_model"]["id"] == model]


def example_prompts(model: str) -> list[str]:
    """What a base model on this machine can be asked for: the texts of `widget` in its README.md, as the Hub has them.

    Args:
        model: a shipped name or a folder; anything else has none.
    """
    card = (shipped_model(model) or Path(model)) / "README.md"
    if not card.is_file():
        return []
    from huggingface_hub import ModelCard

    widget = ModelCard.load(card).data.get("widget") or []
    return [entry["text"] for entry in widget if isinstance(entry, dict) and isinstance(entry.get("text"), str)]
