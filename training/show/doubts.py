"""Warnings in words of a run that learned from a folder: too few likes, a head at chance, pictures learned by heart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..learn.calibration import Calibration

FEW = 20  # of a kind: with fewer, what they have in common is not to be told from what they are
CERTAIN = 2.0  # standard errors
DRAWS = 2  # noises of a picture in a calibration
LAST = 20  # steps whose losses are taken for those of the end


@dataclass(frozen=True)
class Doubts:
    """What speaks against an adapter.

    Args:
        words: a sentence or two for each doubt.
        at_chance: whether the head tells liked pictures that it has not seen from others no better than chance does.
        more: how many more ratings may do.
    """

    words: tuple[str, ...] = ()
    at_chance: bool = False
    more: int = 0


def doubts(r: torch.Tensor, calibration: Sequence[Calibration], losses: Sequence[Mapping[str, Any]]) -> Doubts:
    """The doubts about a run.

    Args:
        r: of the pictures of its folder, (N,).
        calibration: of its head, on pictures that it has not seen.
        losses: the flat lines of that table of its records.
    """
    count, liked = len(r), int((r > 0.5).sum())
    more = max(100, 100 * round(count / 100))
    words = []
    for number, what in ((liked, "liked"), (count - liked, "not liked")):
        if number < FEW:
            words.append(
                f"Only {number} of {count} pictures are {what}. With fewer than {FEW} a run learns these very pictures "
                f"and not what they have in common; about {more} more ratings would help"
            )
    share = max((entry.n for entry in calibration), default=0) / (DRAWS * count)  # of the pictures that were judged
    at_chance = is_at_chance(calibration, round(share * liked), round(share * (count - liked)))
    if at_chance:
        best = max(entry.auc for entry in calibration if entry.auc == entry.auc)
        words.append(
            f"On pictures that it has not seen, alpha tells liked ones from others no better than chance (AUC "
            f"{best:.2f} at best, 0.5 is chance). Either there are too few ratings, or the pictures do not show what "
            f"they are about: not learnable from these, try about {more} more"
        )
    if words_by_heart := _by_heart(losses, float(r.mean())):
        words.append(words_by_heart)
    return Doubts(tuple(words), at_chance, more)


def is_at_chance(calibration: Sequence[Calibration], liked: int, others: int) -> bool:
    """Whether the AUC is nowhere above 1/2 by two standard errors of a head that knows nothing.

    Noises of one picture are not independent, so the error is that of so many pictures: by Mann and Whitney,
    sqrt((m + n + 1) / (12 m n)) with m liked ones and n others.
    """
    known = [entry.auc for entry in calibration if entry.auc == entry.auc]
    if not known or not liked or not others:
        return False
    return max(known) < 0.5 + CERTAIN * math.sqrt((liked + others + 1) / (12 * liked * others))


def _by_heart(losses: Sequence[Mapping[str, Any]], rate: float) -> str:
    """In words, whether the heads know their own pictures and nothing about others; "" if not."""
    last = [row for row in losses[-LAST:] if "alpha held out" in row and "alpha" in row]
    if not last or not 0 < rate < 1:
        return ""
    nothing = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))  # the loss of a head that always says the rate
    own, others = (sum(row[name] for row in last) / len(last) for name in ("alpha", "alpha held out"))
    if not (own < nothing < others):
        return ""
    return (
        f"The run learned its pictures by heart: at its end alpha's loss is {own:.2f} on them and {others:.2f} on "
        f"those that were left out, where {nothing:.2f} is to know nothing. Fewer steps (passes, stop_early) or a "
        "smaller head (head_width, head_layers) do as well; more ratings do better"
    )
