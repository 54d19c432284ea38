"""Early choice: start several noises for each picture, look at alpha after a few steps, go on with the best one.

Along the sampler's path alpha knows the end long before the picture is there, so a few steps of each noise are enough
to choose by. The noise that is kept is one that the base model could have drawn anyway: at strength 0 the picture is
the base model's own. With k candidates looked at after step j of N, a picture costs k j + N forwards of one pass.

Early choice does not sample a law. The rate of liked pictures rises, and no formula says how far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ..checks import is_whole
from ..dial.tilts import Tilt, is_off
from ..errors import GuidanceError

SHARE = 7  # the default looks after one step in seven
SEEDS = 2**32  # seeds of candidates are below it, which every tool takes


@dataclass(frozen=True)
class EarlyChoice:
    """How many noises are tried, and when alpha is asked.

    Args:
        candidates: noises tried for each picture, at least 2.
        after: the step after which they are compared, counted from 1 as `NFTStats` counts steps.
    """

    candidates: int
    after: int

    @classmethod
    def of_call(cls, candidates: Any, after: Any, steps: int | None) -> EarlyChoice | None:
        """The choice that a person asked for; None where there is nothing to choose.

        Args:
            candidates: a whole number of at least 1; 1 and None are no choice.
            after: a whole number of at least 1; None is a seventh of the steps, rounded, and at least 1.
            steps: of the call, None if it does not say.

        Raises:
            GuidanceError: one of them is out of range.
        """
        for name, value in (("nft_candidates", candidates), ("nft_choose_after", after)):
            if value is not None and (not is_whole(value) or value < 1):
                raise GuidanceError(f"{name} is {value!r}, expected a whole number of at least 1.")
        if candidates in (None, 1):
            if after is not None:
                raise GuidanceError(
                    f"nft_choose_after is {after}, and there is nothing to choose from. Give nft_candidates=8 or so "
                    "with it, or leave it out."
                )
            return None
        if after is not None and steps is not None and after > steps:
            raise GuidanceError(
                f"nft_choose_after is {after}, and the call has {steps} steps. Choose after one of the first of them."
            )
        return cls(int(candidates), int(after or 0) or max(1, round((steps or SHARE) / SHARE)))


def judges(tilts: Mapping[str, Tilt], with_head: Sequence[str]) -> list[str]:
    """The adapters by whose alpha candidates are compared: those with a head that are at work.

    Where every tilt is 0 no adapter is at work, and all with a head are asked.

    Args:
        tilts: of all adapters, by name.
        with_head: the names of those that have an alpha head.

    Raises:
        GuidanceError: there is none.
    """
    none_at_work = all(is_off(tilt) for tilt in tilts.values())
    asked = [name for name in with_head if none_at_work or not is_off(tilts[name])]
    if not asked:
        raise GuidanceError(
            f"noises are chosen by alpha, and no adapter at work has an alpha head: {', '.join(map(repr, tilts))}. A "
            "policy adapter's alpha is inside its weights. Use a positive adapter, or choose among no noises."
        )
    return asked


def liking(alphas: Tensor, tilts: Sequence[Tilt]) -> Tensor:
    """How well a noisy state fits what is asked for: the sum of log alpha over the judges, shape (samples,).

    A judge with a negative tilt counts with log(1 - alpha): it is to be disliked by that reward.

    Args:
        alphas: (judges, samples), in [0, 1].
        tilts: one per judge, for all samples or for each; only the sign counts, and 0 is positive.
    """
    negative = torch.stack([alphas.new_tensor(tilt).expand(alphas.shape[1]) < 0 for tilt in tilts])
    return torch.where(negative, 1 - alphas, alphas).log().sum(0)


def best(likings: Tensor) -> Tensor:
    """Which candidate has the highest liking, the first of equals: (candidates, samples) to int64 (samples,)."""
    return likings.argmax(0)


def draw_seeds(generator: Generator | Sequence[Generator] | None, candidates: int, samples: int) -> Tensor:
    """Seeds of the candidates' noises, int64 (candidates, samples), below 2^32.

    Args:
        generator: a generator for all samples, or one per sample; None is torch's own. They advance.
        candidates, samples: how many.

    Raises:
        GuidanceError: there are not as many generators as samples.
    """
    if not isinstance(generator, Sequence):
        return _seeds(generator, (samples, candidates)).T
    if len(generator) != samples:
        raise GuidanceError(
            f"generator is a list of {len(generator)}, and the call draws {samples} pictures. Give one per picture."
        )
    return torch.stack([_seeds(each, (candidates,)) for each in generator], 1)


def _seeds(generator: Generator | None, shape: tuple[int, ...]) -> Tensor:
    device = "cpu" if generator is None else generator.device
    return torch.randint(SEEDS, shape, generator=generator, device=device).cpu()
