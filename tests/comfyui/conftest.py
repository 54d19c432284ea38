"""What the tests of the nodes share."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import fake_comfyui as fake
from helpers.comfyui_world import World


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """The fake of ComfyUI with the nodes, a model and adapters."""
    return World(tmp_path, fake.install(monkeypatch, tmp_path))
