"""One round of an online run: `old` samples pictures, rewards score them while sampling goes on, and they form a pool.

Several processes take batches in turns. The pool is the same in all of them, and the same as one process would make.
The prompts and the noise of a round follow from the run's seed and the round's number alone, so a round that was lost
can be sampled again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..bases.base import Conditions, TrainBase, rows_of
from ..bases.second_order import second_order
from ..data.optimality import CENTRED, Optimality, optimality
from ..data.pool import Pool, score
from ..devices import processes
from ..rewards.find import Scorer
from ..settings.config import TrainConfig
from .roles import LoraRoles

HELD = 2 * 2**30  # bytes of conditions that an online run keeps in memory


@dataclass(frozen=True)
class RoundPrompts:
    """The prompts of one round.

    Args:
        which: the place of each picture's prompt in `texts` and `conditions`, (pictures,).
        texts: each once.
        conditions: theirs, one row each.
    """

    which: Tensor
    texts: list[str]
    conditions: Conditions


class Prompts:
    """All prompts of a run. Where their conditions are large, those of a few rounds are held at a time.

    Conditions of up to `HELD` bytes are made once, and the text encoders are then let go. Of more, those of the next
    rounds are made whenever a round's are missing, each round's on its own, so that a run that goes on makes the same.

    Args:
        base: with text encoders.
        texts: the prompts.
        config: the run's settings.

    Attributes:
        one: the conditions of one prompt.
        empty: those of the empty prompt, with classifier-free guidance.
    """

    def __init__(self, base: TrainBase, texts: Sequence[str], config: TrainConfig) -> None:
        self._base, self._texts, self._config = base, texts, config
        self.empty = base.encode_empty()
        self.one = base.encode_prompts([max(texts, key=len)])
        size = sum(value.nbytes for value in self.one.values())
        self._all: Conditions | None = None
        self._rounds: dict[int, Conditions] = {}
        self._ahead = max(1, HELD // (size * config.round_prompts))
        if size * len(texts) <= HELD:
            self._all = base.encode_prompts(texts)
            base.release()

    def of_round(self, number: int) -> RoundPrompts:
        """The prompts of round `number`."""
        places, which = self._places(number)
        if self._all is not None:
            conditions = rows_of(self._all, places)
        else:
            if number not in self._rounds:
                following = range(number, min(number + self._ahead, max(number + 1, self._config.rounds)))
                self._rounds = {
                    each: self._base.encode_prompts(self._named(self._places(each)[0])) for each in following
                }
            conditions = self._rounds[number]
        return RoundPrompts(which, self._named(places), conditions)

    def _places(self, number: int) -> tuple[Tensor, Tensor]:
        places, which = round_prompts(len(self._texts), self._config, number).unique(return_inverse=True)
        return places, which

    def _named(self, places: Tensor) -> list[str]:
        return [self._texts[place] for place in places.tolist()]


def baseline_warning(config: TrainConfig, mean_r: float | None = None) -> str | None:
    """A warning if the settings would drive `old` away from its own samples; None if they would not.

    On average a baseline of 1/2 adds tilt (E[r] - 1/2)(y - v_old) to the target. That has mean zero if v_old is E[y].
    But a model is never quite the mean of its own samples, and with E[r] below 1/2 every round widens the difference.

    Args:
        mean_r: the mean of r in a round. None before the first round, when only methods that centre r at 1/2 tell it.
    """
    is_half = config.kind == "paper" or (config.kind == "policy" and config.baseline == "half")
    is_low = config.optimality not in CENTRED if mean_r is None else mean_r < 0.45
    if not (config.online and is_half and is_low):
        return None
    seen = f"optimality is {config.optimality!r}" if mean_r is None else f"r is {mean_r:.2f} in the mean"
    which = "objective 'paper'" if config.kind == "paper" else "baseline 'half'"
    return (
        f"warning: {which} wants r to be 1/2 in the mean, and {seen}; below it every round drives the model away from "
        "its own samples. Set optimality: group, rank or sigmoid, or objective: policy with baseline: alpha"
    )


def round_prompts(count: int, config: TrainConfig, number: int) -> torch.Tensor:
    """The prompt of each picture of round `number`, shape (pictures,): `group_size` pictures of one prompt in a row."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(-(-config.round_prompts // count))])
    return order[: config.round_prompts].repeat_interleave(config.group_size)


@torch.no_grad()
def sample_round(
    base: TrainBase,
    roles: LoraRoles,
    prompts: RoundPrompts,
    empty: Conditions | None,
    rewards: Mapping[str, Scorer],
    config: TrainConfig,
    number: int,
    stop: Callable[[], None] = lambda: None,
    together: bool = False,
) -> tuple[Pool, Optimality]:
    """Sample and score round `number` with `old`; samples without a score are left out.

    Args:
        prompts: the round's.
        empty: conditions of the empty prompt, needed with classifier-free guidance.
        rewards: the rewards by the names that the settings give them.
        stop: called between batches; may raise.
        together: whether all processes have to run equally many forwards, because the base model is split.

    Raises:
        RewardError, OptimalityError: the scores are not as many as the pictures, too many are missing, or some are out
            of range.
    """
    which = prompts.which
    noise_generator = torch.Generator().manual_seed(config.seed * 1_000_003 + 500_009 * (number + 1))
    noise = torch.randn(base.latent_shape(len(which)), generator=noise_generator)
    latents = torch.zeros(noise.shape)
    scores = torch.zeros(len(rewards), len(which), dtype=torch.float64)
    roles.use("old")
    solver = second_order(base) if config.authors_trainer else nullcontext()
    parts = torch.arange(len(which)).split(config.pool_batch)
    asked = []

    def draw(rows: Tensor) -> Tensor:
        return base.sample_batch(rows_of(prompts.conditions, which[rows]), noise[rows], empty)

    with solver, ThreadPoolExecutor(max_workers=1) as judge:
        # A turn is one batch for each process; all of them stop between the same two.
        turns = range(0, len(parts), processes.count())
        for turn in tqdm(
            turns,
            desc=f"round {number + 1} of {config.rounds}: sampling",
            unit="batch",
            leave=False,
            disable=processes.rank() != 0,
        ):
            stop()
            mine = turn + processes.rank()
            if mine >= len(parts) and not together:
                continue
            rows = parts[min(mine, len(parts) - 1)]
            if together:  # as many forwards as the others run
                sampled = draw(rows)
            else:
                sampled = torch.cat([part for _, part in base.fits.parts("drawing", rows, len(rows), draw)])
            if mine >= len(parts):  # it ran along with the others, who gather the model's weights from it
                continue
            latents[rows] = sampled
            pictures = base.decode_latents(latents[rows])
            texts = [prompts.texts[i] for i in which[rows].tolist()]
            asked += [
                (rows, index, judge.submit(score, reward, name, pictures, texts))
                for index, (name, reward) in enumerate(rewards.items())
            ]
        for rows, index, answer in asked:
            scores[index, rows] = torch.from_numpy(answer.result())
    latents, scores = processes.summed(latents), processes.summed(scores)
    table = {name: scores[index].numpy() for index, name in enumerate(rewards)}
    groups = np.repeat(np.arange(config.round_prompts), config.group_size)
    if config.authors_trainer:  # one group of all pictures with the same text
        groups = np.unique([prompts.texts[i] for i in which.tolist()], return_inverse=True)[1]
    found = optimality(
        table,
        config.optimality,
        weights=config.public_weights,
        groups=groups,
        at=config.optimality_at,
        sum_first=config.authors_trainer,
        mix=config.mix,
    )
    kept = torch.from_numpy(found.kept)
    r = torch.from_numpy(found.r[found.kept])
    clean = latents[kept] if config.authors_trainer else latents[kept].half()
    return Pool.of(clean, which[kept], prompts.conditions, r), found
