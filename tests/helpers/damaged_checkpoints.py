"""Checkpoints that something happened to: what loading makes of a damaged copy, over and over, by seed.

Beside every damaged checkpoint stands the one before it. Loading has to end in the same numbers; in those of the other
checkpoint, after saying which file is damaged; or in an error that names it. Other numbers are a failure.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from nft_pipeline.training.run.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

SETTINGS = {"steps": 10, "name": "tiny"}
OUTCOMES = ("same numbers", "the one before, and the damaged one named", "an error that names it", "failure")


def state(step: int) -> dict[str, Any]:
    """What a run keeps, in small: weights, the optimiser's moments, counters, texts."""
    numbers = torch.Generator().manual_seed(step)
    weights = {f"layer.{i}": torch.randn(40, 8, generator=numbers) for i in range(8)}
    moments = {
        i: {"exp_avg": torch.randn(40, 8, generator=numbers), "step": torch.tensor(float(step))} for i in range(8)
    }
    return {"settings": SETTINGS, "learner": {"weights": weights, "optimizer": moments, "step": step, "note": "text"}}


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The content of a file with one accident: cut short, zeros or noise over a part, bits flipped, a part twice."""
    changed = bytearray(data)
    place, length = chance.randrange(len(data)), chance.choice((1, 16, 512, 4096))
    act = chance.randrange(6)
    if act == 0:
        del changed[place:]
    elif act == 1:
        changed[place : place + length] = bytes(len(changed[place : place + length]))
    elif act == 2:
        changed[place : place + length] = chance.randbytes(len(changed[place : place + length]))
    elif act == 3:
        changed[place:place] = changed[place : place + length]
    else:
        for _ in range(chance.choice((1, 1, 8))):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def outcomes(folder: Path, count: int, seed: int, hashed: bool = True) -> Counter[str]:
    """How often `count` damaged checkpoints came to each of `OUTCOMES`.

    Args:
        folder: an empty folder to work in.
        hashed: whether they have the hash of today's version; the first version's have the checksums of a zip file.
    """
    path, chance = folder / "checkpoint.pt", random.Random(seed)
    save_checkpoint(folder / "checkpoint-000003.pt", state(3))
    save_checkpoint(path, state(6))
    if not hashed:
        torch.save(state(6), path)
    whole, counts = path.read_bytes(), Counter[str]()
    for _ in range(count):
        path.write_bytes(mutated(whole, chance))
        counts[_outcome(path)] += 1
    return counts


def _outcome(path: Path) -> str:
    lines: list[str] = []
    try:
        loaded = load_checkpoint(path, SETTINGS, lines.append)
    except CheckpointError as error:
        return OUTCOMES[2] if str(path) in str(error) else OUTCOMES[3]
    except Exception:
        return OUTCOMES[3]
    if loaded is not None and _equal(loaded["learner"], state(6)["learner"]):
        return OUTCOMES[0]
    is_before = loaded is not None and _equal(loaded["learner"], state(3)["learner"])
    return OUTCOMES[1] if is_before and any(f"{path} cannot be read" in line for line in lines) else OUTCOMES[3]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    return bool(one == other)
