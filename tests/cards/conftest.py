"""A Hub on this machine, which this process's huggingface_hub client takes for the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.local_hub import LocalHub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """Empty, with a cache of its own."""
    with LocalHub() as running:
        running.use_here(monkeypatch, tmp_path / "home")
        yield running
