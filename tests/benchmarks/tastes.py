"""Tastes that nobody chose: likes about pictures of the shapes world, drawn by a seeded rule, and prompts to draw for.

A taste is a yes or no about what `training/shapes/score.py` reads off a picture. `candidates()` are all that the rule
may draw, in words that name them; `draw_tastes` picks some by how often the base model's pictures have them. `Taste` is
the reward of one. The prompts leave much open, so that there is something to like; the three lists share no text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from nft_pipeline.training.rewards import Reward, RewardInfo, RewardOutput
from nft_pipeline.training.rewards.pictures import to_arrays
from nft_pipeline.training.shapes.score import Look, Seen, look
from nft_pipeline.training.shapes.world import BACKGROUNDS, COLOURS, RADII, RELATIONS, SHAPES, SIZE, Noun, Prompt

RATES = (0.05, 0.1, 0.3, 0.6)  # wanted of the tastes about things one by one
RELATIONAL_RATES = (0.1, 0.3)  # wanted of those about two things together
NEAR = 1.2  # a rate is near the wanted one if it is at most so many times as large or as small
BY_PROMPT = 0.5  # at most so much of a taste's variance may be decided by the prompt alone
DRAWN_WITH = 19  # the seed of the rule
PROMPTS_WITH = 4_190
TRAINING, CALIBRATION, MEASUREMENT, DIAL = 192, 64, 64, 128  # prompts in each list
WARM = ("red", "orange", "yellow")


@dataclass(frozen=True)
class Candidate:
    """Something that a picture may have.

    Args:
        kind: the attributes that it is about. No two tastes of a draw are of one kind.
        holds: whether a picture has it, given what `look` reads off the picture.
        relational: whether it is about how two things of a picture stand to each other.
    """

    kind: str
    holds: Callable[[Look], bool]
    relational: bool = False


def candidates() -> dict[str, Candidate]:
    """All candidates by their words: about single attributes, about two at once, and about pairs of things."""
    return dict(_candidates())


@cache
def _candidates() -> Mapping[str, Candidate]:
    single = {**_about_background(), **_about_things()}
    both = {
        f"{one} and {other}": Candidate(f"{a.kind} and {b.kind}", _all_of(a.holds, b.holds))
        for (one, a), (other, b) in itertools.combinations(single.items(), 2)
        if a.kind != b.kind
    }
    return {**single, **both, **_about_pairs()}


def _about_background() -> dict[str, Candidate]:
    sets = [*itertools.combinations(BACKGROUNDS, 1), *itertools.combinations(BACKGROUNDS, 2)]
    return {
        f"the background is {' or '.join(some)}": Candidate("background", lambda seen, some=some: seen[0] in some)
        for some in sets
    }


def _about_things() -> dict[str, Candidate]:
    """About each thing of a picture by itself; a picture of nothing has none of it."""
    found: dict[str, Candidate] = {}
    for count in (1, 2, 3):
        for some in itertools.combinations(COLOURS, count):
            found[f"everything is {' or '.join(some)}"] = Candidate("colour", _every("colour", some))
    for colour in COLOURS:
        found[f"something is {colour}"] = Candidate("a colour", _some("colour", (colour,)))
    for size in RADII:
        found[f"everything is {size}"] = Candidate("size", _every("size", (size,)))
    for shape in SHAPES:
        found[f"there is a {shape}"] = Candidate("shape", _some("shape", (shape,)))
    for number in (1, 2, 3):
        found[f"the number of things is {number}"] = Candidate("count", lambda seen, n=number: len(seen[1]) == n)
    return found


def _about_pairs() -> dict[str, Candidate]:
    """About two things of a picture with exactly two."""
    large, small = _is("size", ("large",)), _is("size", ("small",))
    warm, cold = _is("colour", WARM), _is("colour", tuple(set(COLOURS) - set(WARM)))
    rules: dict[str, Callable[[Seen, Seen], bool]] = {
        "two things have the same colour": lambda a, b: a.colour == b.colour,
        "two things have different colours": lambda a, b: a.colour != b.colour,
        "two things have the same size": lambda a, b: a.size == b.size,
        "two things have the same colour and size": lambda a, b: (a.colour, a.size) == (b.colour, b.size),
        "of two things one is warm and one is cold": lambda a, b: warm(a) and cold(b),
        "of two things the large one is warm, the small one cold": lambda a, b: (
            large(a) and small(b) and warm(a) and cold(b)
        ),
        "of two things the large one is cold, the small one warm": lambda a, b: (
            large(a) and small(b) and cold(a) and warm(b)
        ),
    }
    for relation in RELATIONS:
        rules[f"a large thing is {relation} a small one"] = lambda a, b, where=relation: (
            large(a) and small(b) and _stands(a, b, where)
        )
        rules[f"a warm thing is {relation} a cold one"] = lambda a, b, where=relation: (
            warm(a) and cold(b) and _stands(a, b, where)
        )
    return {words: Candidate(words, _pair(rule), relational=True) for words, rule in rules.items()}


def _is(attribute: str, values: Sequence[str]) -> Callable[[Seen], bool]:
    return lambda thing: getattr(thing, attribute) in values


def _every(attribute: str, values: Sequence[str]) -> Callable[[Look], bool]:
    return lambda seen: bool(seen[1]) and all(getattr(thing, attribute) in values for thing in seen[1])


def _some(attribute: str, values: Sequence[str]) -> Callable[[Look], bool]:
    return lambda seen: any(getattr(thing, attribute) in values for thing in seen[1])


def _all_of(*rules: Callable[[Look], bool]) -> Callable[[Look], bool]:
    return lambda seen: all(rule(seen) for rule in rules)


def _pair(rule: Callable[[Seen, Seen], bool]) -> Callable[[Look], bool]:
    """Whether the rule holds for the two things in one order or the other."""
    return lambda seen: len(seen[1]) == 2 and any(rule(a, b) for a, b in itertools.permutations(seen[1]))


def _stands(a: Seen, b: Seen, relation: str) -> bool:
    dx, dy = b.x - a.x, b.y - a.y
    forward = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
    return forward > SIZE / 8


def draw_tastes(looks: Sequence[Look], prompt: np.ndarray, seed: int = DRAWN_WITH) -> dict[str, float]:
    """The words of the tastes with their base rates: one near each of RATES, one near each of RELATIONAL_RATES.

    The rule: go through the wanted rates; of the candidates of a kind that was not drawn yet, whose variance is at most
    to BY_PROMPT the prompts' doing and whose rate is at most NEAR times off, take one at random, all alike. If none is
    that near, take the nearest.

    Args:
        looks: what `look` reads off the base model's pictures.
        prompt: the prompt of each picture, shape (N,).
    """
    rng, drawn, kinds = np.random.default_rng(seed), dict[str, float](), set[str]()
    rates: dict[str, float] = {}
    for words, candidate in candidates().items():
        has = np.array([candidate.holds(seen) for seen in looks], float)
        if 0 < has.mean() < 1 and prompts_share(has, prompt) <= BY_PROMPT:
            rates[words] = float(has.mean())
    wanted = [(rate, False) for rate in RATES] + [(rate, True) for rate in RELATIONAL_RATES]
    for rate, relational in wanted:
        off = {
            words: abs(np.log(found / rate))
            for words, found in rates.items()
            if candidates()[words].relational == relational and candidates()[words].kind not in kinds
        }
        near = [words for words, distance in off.items() if distance <= np.log(NEAR)] or [min(off, key=off.__getitem__)]
        words = near[int(rng.integers(len(near)))]
        drawn[words] = rates[words]
        kinds.add(candidates()[words].kind)
    return drawn


def prompts_share(has: np.ndarray, prompt: np.ndarray) -> float:
    """The share of the variance of a 0/1 value that lies between prompts, in [0, 1], chance taken out.

    Args:
        has: the values, shape (N,), not all alike.
        prompt: the prompt of each, shape (N,), each prompt at least twice.
    """
    _, place = np.unique(prompt, return_inverse=True)
    count = np.bincount(place)
    mean = np.bincount(place, has) / count
    within = float((mean * (1 - mean) * count / (count - 1) * count).sum() / count.sum())
    return float(np.clip(1 - within / (has.mean() * (1 - has.mean())), 0, 1))


class Taste(Reward):
    """1 for a picture that has what the taste's words say, else 0 (64 x 64 px pictures of the shapes world).

    Args:
        words: one of `candidates()`.
    """

    info = RewardInfo(name="taste", version="1")

    def __init__(self, words: str) -> None:
        self.holds = candidates()[words].holds

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """1 for each picture that has it."""
        return RewardOutput(torch.tensor([float(self.holds(look(picture))) for picture in to_arrays(images)]))


def training_prompts() -> list[str]:
    """Prompts that pictures are drawn for, to be rated and trained on."""
    return list(_prompts()[:TRAINING])


def calibration_prompts() -> list[str]:
    """Prompts that a run holds out of its training, to calibrate its head on."""
    return list(_prompts()[TRAINING : TRAINING + CALIBRATION])


def dial_prompts() -> list[str]:
    """Prompts that a dial is calibrated on: those held out, and as many more as a calibration likes to have."""
    return [*calibration_prompts(), *_prompts()[TRAINING + CALIBRATION + MEASUREMENT :]]


def measurement_prompts() -> list[str]:
    """Prompts that the dial is measured on; none is trained or calibrated on."""
    return list(_prompts()[TRAINING + CALIBRATION : TRAINING + CALIBRATION + MEASUREMENT])


@cache
def _prompts() -> tuple[str, ...]:
    """Different texts in random order. A fifth of them have one thing, a tenth two or three of a kind, the others two
    things; each attribute is named once in five times, the relation and the background once in five."""
    rng = np.random.default_rng(PROMPTS_WITH)

    def pick(values: Sequence[str], chance: float = 1.0) -> str | None:
        return values[int(rng.integers(len(values)))] if rng.random() < chance else None

    def noun(count: int = 1) -> Noun:
        shape = pick(SHAPES)
        assert shape is not None
        return Noun(shape, count, pick(tuple(COLOURS), 0.2), pick(tuple(RADII), 0.2))

    texts: dict[str, None] = {}
    while len(texts) < TRAINING + CALIBRATION + MEASUREMENT + DIAL:
        kind, background = rng.random(), pick(tuple(BACKGROUNDS), 0.2)
        if kind < 0.2:
            prompt = Prompt((noun(),), background=background)
        elif kind < 0.3:
            prompt = Prompt((noun(int(rng.integers(2, 4))),), background=background)
        else:
            prompt = Prompt((noun(), noun()), pick(RELATIONS, 0.2), background)
        texts[prompt.text()] = None
    return tuple(texts)
