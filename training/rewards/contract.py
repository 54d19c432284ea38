"""What a reward is: pictures and prompts in, one number per picture out, and a card that says how to read the number.

A reward keeps the scale its authors gave it (PickScore around 20, ImageReward around 0). What training needs is
r(x0, c) in [0, 1], the probability that a picture is a good one (docs/theory.md, M1); `RewardInfo.probability`
maps there, always upwards for better pictures.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from PIL.Image import Image
from torch import Tensor

from .pictures import to_pil

Images = Sequence[Image] | Tensor
Metadata = Sequence[Mapping[str, Any]]


class RewardError(ValueError):
    """A reward that cannot be found or loaded, or gave scores that cannot be used."""


@dataclass(frozen=True, kw_only=True)
class RewardInfo:
    """The card of a reward.

    Args:
        name: what it is called in a run's settings.
        range: lowest and highest score; infinite where there is no bound.
        larger_is_better: False where a small score is a good picture.
        middle, spread: needed where the range is infinite or hardly used: the score of an ordinary picture, and the
            distance to a clearly better one. They fix r = sigmoid((score - middle) / spread).
        licence: of the weights (SPDX where there is one).
        memory_gb: needed beside the model that is trained, in GB at the default precision.
        version: changes whenever the same picture would get another score, weights included. Scores are cached under
            it; "" means not known, and then they are not cached.
    """

    name: str
    range: tuple[float, float] = (0.0, 1.0)
    larger_is_better: bool = True
    middle: float | None = None
    spread: float = 1.0
    licence: str = "no weights"
    memory_gb: float = 0.0
    version: str = ""

    def __post_init__(self) -> None:
        low, high = self.range
        if not low < high:
            raise RewardError(f"reward {self.name!r}: range is {self.range}, expected (lowest, highest)")
        if self.middle is None and not (math.isfinite(low) and math.isfinite(high)):
            raise RewardError(
                f"reward {self.name!r}: range {self.range} has no bound, so `middle` (the score of an ordinary "
                "picture) and `spread` are needed to map scores to probabilities"
            )
        if not (math.isfinite(self.spread) and self.spread > 0):
            raise RewardError(f"reward {self.name!r}: spread is {self.spread!r}, expected a number above 0")

    def probability(self, scores: Tensor) -> Tensor:
        """r in [0, 1], larger is better, for scores of any shape: by the range, or a sigmoid where `middle` is set."""
        if self.middle is None:
            low, high = self.range
            r = ((scores - low) / (high - low)).clamp(0, 1)
        else:
            r = torch.sigmoid((scores - self.middle) / self.spread)
        return r if self.larger_is_better else 1 - r


@dataclass(frozen=True)
class RewardOutput:
    """Scores of B pictures.

    Args:
        scores: float32, shape (B,), on the scale of the reward's card.
        details: anything worth keeping beside the score, by name, a list of B values each (the text OCR read, a
            judge's answer); plain values that JSON can hold.
    """

    scores: Tensor
    details: dict[str, list[Any]] = field(default_factory=dict)


class Reward(ABC):
    """Scores pictures. Subclasses set `info` and write `score`; those that can be differentiated also `score_tensor`.

    Attributes:
        info: the card. What is known of it before the reward is made is the class's own (docs/rewards.md shows that);
            the constructor adds the rest, such as the version of the weights.
        differentiable: whether gradients reach a tensor of pictures.
        needs: packages it imports that may be missing, by their import names; `diffusion-nft reward list` says which
            are. (The built-in rewards say it in `NEEDS`, see training/rewards/kinds, which is read without an import.)
        batch: pictures scored at once, at most.
    """

    info: RewardInfo
    differentiable: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    batch: int = 64

    @abstractmethod
    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """Score up to `batch` pictures. Lengths have been checked; what comes back will be."""

    def score_tensor(self, images: Tensor, prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """The same of a tensor (B, 3, H, W) in [0, 1]."""
        return self.score(to_pil(images), prompts, metadata)

    def __call__(
        self,
        images: Images,
        prompts: Sequence[str],
        metadata: Metadata | None = None,
        *,
        allow_missing: bool = False,
    ) -> RewardOutput:
        """Score pictures, `batch` at a time.

        Args:
            images: PIL pictures, or a tensor (B, 3, H, W) in [0, 1].
            prompts: B texts.
            metadata: B mappings of what else is known of each picture (default: nothing is).
            allow_missing: give NaN where a score is NaN or infinite, for a caller that leaves such pictures out.

        Raises:
            RewardError: lengths differ, the pictures are of no such form, gradients are asked of a reward that has
                none, or the scores are of another number, or NaN or infinite.
        """
        n, name = len(images), self.info.name
        metadata = [{}] * n if metadata is None else metadata
        if not len(prompts) == len(metadata) == n:
            raise RewardError(
                f"reward {name!r} got {n} pictures, {len(prompts)} prompts and {len(metadata)} metadata entries; "
                "expected as many of each"
            )
        if isinstance(images, Tensor):
            if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
                raise RewardError(
                    f"reward {name!r} got a {images.dtype} tensor of shape {tuple(images.shape)}; expected floats "
                    "in [0, 1] of shape (B, 3, height, width)"
                )
            if images.requires_grad and not self.differentiable:
                raise RewardError(
                    f"reward {name!r} has no gradient, but its pictures require one; pass images.detach(), or take "
                    "a differentiable reward: image_reward, pickscore, clip_score, aesthetic or hps_v2"
                )
        elif other := [type(image).__name__ for image in images if not isinstance(image, Image)]:
            raise RewardError(f"reward {name!r} got a {other[0]}, expected PIL pictures or a tensor (B, 3, H, W)")
        parts = []
        for i in range(0, n, self.batch):
            rows = slice(i, i + self.batch)
            some, texts, known = images[rows], list(prompts[rows]), list(metadata[rows])
            if isinstance(some, Tensor):
                part = self.score_tensor(some, texts, known)
            else:
                part = self.score([image.convert("RGB") for image in some], texts, known)
            parts.append(_checked(part, len(texts), name, allow_missing))
        scores = torch.cat([part.scores for part in parts]) if parts else torch.zeros(0)
        keys = dict.fromkeys(key for part in parts for key in part.details)
        blank = [[None] * len(part.scores) for part in parts]
        details = {
            key: [v for part, none in zip(parts, blank, strict=True) for v in part.details.get(key, none)]
            for key in keys
        }
        return RewardOutput(scores, details)


def _checked(output: RewardOutput, n: int, name: str, allow_missing: bool) -> RewardOutput:
    scores = output.scores.float()
    if scores.shape != (n,):
        raise RewardError(f"reward {name!r} gave scores of shape {tuple(scores.shape)} for {n} pictures")
    bad = (~scores.isfinite()).nonzero().flatten().tolist()
    if bad and allow_missing:
        scores = torch.where(scores.isfinite(), scores, torch.nan)
    elif bad:
        raise RewardError(
            f"reward {name!r} gave {len(bad)} scores of {n} that are NaN or infinite, the first for picture {bad[0]}. "
            "Look at that picture; in 16 bits a reward model may overflow, try float32"
        )
    for key, values in output.details.items():
        if len(values) != n:
            raise RewardError(f"reward {name!r} gave {len(values)} values of detail {key!r} for {n} pictures")
    return RewardOutput(scores, output.details)
