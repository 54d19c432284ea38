"""What ships with the package: a small base model and adapters for it, found by name.

A name is a shipped one only as it stands: "shapes" is the shipped model, "./shapes" a folder of yours.
"""

from __future__ import annotations

from pathlib import Path

MODELS = ("shapes",)
ADAPTERS = ("shapes-warm", "shapes-follow")
_HERE = Path(__file__).parent


def shipped_model(name: str) -> Path | None:
    """The folder of a shipped base model, None if `name` is none."""
    return _HERE / name if name in MODELS else None


def shipped_adapter(name: str) -> Path | None:
    """The folder of a shipped adapter, None if `name` is none."""
    return _HERE / name if name in ADAPTERS else None
