"""What the disk under a folder can do."""

from __future__ import annotations

import tempfile
from pathlib import Path

from nft_pipeline.files.atomic import exchange


def can_exchange(folder: Path) -> bool:
    """Can two folders in here be swapped in one step? (Not on every system, nor every sandbox.)"""
    with tempfile.TemporaryDirectory(dir=folder) as first, tempfile.TemporaryDirectory(dir=folder) as second:
        return exchange(first, second)
