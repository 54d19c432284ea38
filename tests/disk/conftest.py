"""What the tests of other tools' files share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.foreign import official_checkpoint, peft_model
from helpers.zoo import CASES

SD3 = CASES["StableDiffusion3Pipeline"]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return SD3.pipe()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """checkpoint-300, with an adapter called old."""
    return official_checkpoint(tmp_path, peft_model(SD3.pipe().transformer, old=True))
