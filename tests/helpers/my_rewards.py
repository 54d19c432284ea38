"""Rewards as a person would write them, named by path in tests/scoring."""

from __future__ import annotations

import time
from collections.abc import Mapping
from os import getpid
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from nft_pipeline.training.rewards import Reward, RewardInfo, RewardOutput


def redness(images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> list[float]:
    """Mean red, in [0, 1]."""
    return [float(np.asarray(image)[..., 0].mean()) / 255 for image in images]


def too_large(images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> list[float]:
    """Scores beyond [0, 1], without a card that says so."""
    return [7.0] * len(images)


def words(images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> str:
    """Not scores."""
    return "good"


def broken(images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> list[float]:
    """Raises."""
    return [1 / 0]


def spoilt(images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> list[float]:
    """NaN where the prompt asks for it."""
    return [float("nan") if "nan" in prompt else 0.5 for prompt in prompts]


def too_few(images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> list[float]:
    """One score less than pictures."""
    return [0.5] * (len(images) - 1)


class Darkness(Reward):
    """Mean grey level, 0 to 255, small is good; differentiable; counts its calls."""

    differentiable = True

    def __init__(self, device: str = "cpu", batch: int = 2, version: str = "1") -> None:
        self.info = RewardInfo(name="darkness", range=(0.0, 255.0), larger_is_better=False, version=version)
        self.device, self.batch = device, batch
        self.calls: list[int] = []

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        self.calls.append(len(images))
        scores = torch.tensor([float(np.asarray(image).mean()) for image in images])
        return RewardOutput(scores, {"prompt": list(prompts)})

    def score_tensor(self, images: Tensor, prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        return RewardOutput(images.mean(dim=(1, 2, 3)) * 255)


class Slow(Reward):
    """Mean red, at leisure; fails in the ways its prompts name."""

    batch = 16

    def __init__(self) -> None:
        self.info = RewardInfo(name="slow", version="1", licence="MIT")

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        time.sleep(0.02 * len(images))
        if "crash" in prompts:
            raise RuntimeError("out of memory")
        scores = [float("nan") if p == "nan" else red for p, red in zip(prompts, redness(images, [], []), strict=True)]
        return RewardOutput(
            torch.tensor(scores), {"at_once": [len(images)] * len(images), "by": [getpid()] * len(images)}
        )


class Tidy(Reward):
    """How tidy it is."""

    info = RewardInfo(name="tidy")
    needs = ("no_such_package",)

    def __init__(self) -> None:
        import no_such_package  # noqa: F401

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        return RewardOutput(torch.zeros(len(images)))


made_already = Darkness()
number = 3
