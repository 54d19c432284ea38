"""A cache of scores, by the content of picture and prompt and by the version of the reward.

One SQLite file, which is written whole or not at all by design and may be shared by several processes. A reward whose
card has no version, and one that needs a picture's metadata, is never cached.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from .contract import Reward, RewardError, RewardOutput
from .pictures import content_hash

_TABLE = "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score REAL NOT NULL, details TEXT NOT NULL)"


def default_cache() -> Path:
    """scores.sqlite in diffusion-nft's folder of the user's cache (XDG_CACHE_HOME, else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffusion-nft" / "scores.sqlite"


class ScoreCache:
    """Scores by key.

    Args:
        path: the file; made, with its folder, when missing.

    Raises:
        RewardError: the file is something else, or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Autocommit: only `put` opens a transaction. Wait up to a minute for another process's write.
            self.file = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self.file.execute(_TABLE)
        except sqlite3.Error as error:
            raise RewardError(f"{path} cannot be used as a score cache: {error}. Delete it, or name another") from error

    def get(self, keys: Sequence[bytes]) -> dict[bytes, tuple[float, dict[str, Any]]]:
        """Those of the keys that are known, with score and details."""
        found = {}
        for key in set(keys):
            row = self.file.execute("SELECT score, details FROM scores WHERE key = ?", (key,)).fetchone()
            if row is not None:
                found[key] = (row[0], json.loads(row[1]))
        return found

    def put(self, entries: Mapping[bytes, tuple[float, dict[str, Any]]]) -> None:
        """Keep all of them, or, if that fails, none."""
        rows = [(key, score, json.dumps(details, default=str)) for key, (score, details) in entries.items()]
        with self.file:
            self.file.execute("BEGIN IMMEDIATE")
            self.file.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class CachedReward(Reward):
    """A reward that asks the cache first. Tensors that need gradients pass it by.

    Args:
        reward: the reward.
        cache: where its scores are kept.
    """

    def __init__(self, reward: Reward, cache: ScoreCache) -> None:
        self.reward, self.cache = reward, cache
        self.info, self.batch = reward.info, reward.batch
        self.hits = 0

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """As the reward is."""
        return self.reward.differentiable

    def score_tensor(self, images: Tensor, prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """The same of a tensor; one that requires a gradient is scored by the reward itself."""
        if images.requires_grad:
            return self.reward(images, prompts, metadata)
        return super().score_tensor(images, prompts, metadata)

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """Scores of known pictures from the cache; the reward scores the others, which are then kept."""
        if not self.info.version:
            return self.reward(images, prompts, metadata)
        keys = [self._key(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        known = self.cache.get(keys)
        new = [i for i, key in enumerate(keys) if key not in known]
        self.hits += len(images) - len(new)
        if new:
            output = self.reward([images[i] for i in new], [prompts[i] for i in new], [metadata[i] for i in new])
            fresh = {
                keys[i]: (score, {name: values[j] for name, values in output.details.items()})
                for j, (i, score) in enumerate(zip(new, output.scores.tolist(), strict=True))
            }
            self.cache.put(fresh)
            known |= fresh
        names = dict.fromkeys(name for _, details in known.values() for name in details)
        details = {name: [known[key][1].get(name) for key in keys] for name in names}
        return RewardOutput(torch.tensor([known[key][0] for key in keys]), details)

    def _key(self, image: Image, prompt: str) -> bytes:
        parts = (self.info.name, self.info.version, prompt, content_hash(image))
        return hashlib.sha256(json.dumps(parts).encode()).digest()
