"""ShapesEval: does a picture show what its prompt says? Decided from pixels alone.

The six categories are those of GenEval (2310.11513), in miniature: single object, two objects, counting, colours,
position, colour attribution. A picture is cut into things by colour, each thing is matched against drawn templates, and
the named attributes are checked one by one. The *score* (a reward) is the fraction of attributes that are right. The
picture is *correct* (the optimality o of docs/theory.md, M1) if all of them are.

Picture *quality* is the template overlap: how well each thing fits the best drawn template at its place and size
(intersection over union with soft edges, 1 = as drawn), averaged over the things of a picture; 0 if there is none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .world import BACKGROUNDS, COLOURS, RADII, SHAPES, SIZE, Noun, Prompt, coverage

CATEGORIES = ("single object", "two objects", "counting", "colours", "position", "colour attribution")
SMALLEST = 20  # pixels; anything smaller is a speck, not a thing
LARGE_FROM = (RADII["small"] + RADII["large"]) / 2  # half side in pixels


@dataclass(frozen=True)
class Seen:
    """One thing found in a picture. `overlap` in [0, 1] is its fit to the drawn template."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    overlap: float


Look = tuple[str, tuple[Seen, ...]]  # background and things


@dataclass(frozen=True)
class Judgement:
    """What a picture shows, measured against its prompt.

    `right` has one entry for each attribute the prompt names (count included), True where the picture agrees.
    """

    right: dict[str, bool]
    things: tuple[Seen, ...]
    background: str

    @property
    def score(self) -> float:
        """Fraction of the named attributes that are right, in [0, 1]."""
        return sum(self.right.values()) / len(self.right) if self.right else 1.0

    @property
    def correct(self) -> bool:
        """All named attributes are right: o = 1."""
        return all(self.right.values())

    @property
    def quality(self) -> float:
        """Mean template overlap of the things seen, in [0, 1]."""
        return float(np.mean([thing.overlap for thing in self.things])) if self.things else 0.0


def _nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    names = list(palette)
    return names[int(np.argmin([np.linalg.norm(colour - np.array(palette[name])) for name in names]))]


def look(picture: np.ndarray) -> Look:
    """Background and things of a picture.

    Args:
        picture: uint8, shape (64, 64, 3).

    Raises:
        ValueError: another shape or dtype.
    """
    if picture.shape != (SIZE, SIZE, 3) or picture.dtype != np.uint8:
        raise ValueError(f"picture is {picture.dtype} {picture.shape}, expected uint8 ({SIZE}, {SIZE}, 3)")
    pixels = picture.astype(np.float64)
    border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), pixels[:, :2].reshape(-1, 3)])
    ground = np.median(border, axis=0)
    distance = np.linalg.norm(pixels - ground, axis=-1)
    labels, count = ndimage.label(distance > 45.0)
    things = []
    for label in range(1, count + 1):
        inside = labels == label
        if inside.sum() >= SMALLEST:
            core = inside & (distance >= np.quantile(distance[inside], 0.5))
            things.append(_recognise(pixels, inside, np.median(pixels[core], axis=0), ground))
    return _nearest(ground, BACKGROUNDS), tuple(things)


def _recognise(pixels: np.ndarray, inside: np.ndarray, colour: np.ndarray, ground: np.ndarray) -> Seen:
    axis = colour - ground
    # How far each pixel is on the way from background to thing: its coverage, edges included.
    cover = np.clip((pixels - ground) @ axis / (axis @ axis), 0.0, 1.0) * ndimage.binary_dilation(inside)
    rows, columns = cover.sum(1), cover.sum(0)
    (top, bottom), (left, right) = _extent(cover.max(1), rows), _extent(cover.max(0), columns)
    x, y, r = (left + right) / 2, (top + bottom) / 2, (right - left + bottom - top) / 4
    overlaps = {}
    for shape in SHAPES:
        template = coverage(shape, x, y, r)
        overlaps[shape] = float(np.minimum(template, cover).sum() / np.maximum(template, cover).sum())
    shape = max(overlaps, key=overlaps.__getitem__)
    size = "large" if r >= LARGE_FROM else "small"
    return Seen(shape, _nearest(colour, COLOURS), size, x, y, overlaps[shape])


def _extent(peak: np.ndarray, mass: np.ndarray) -> tuple[float, float]:
    """First and last edge of a thing along one axis, in pixels with fractions, from its strongest coverage there."""
    solid = np.flatnonzero(peak > 0.5)
    if len(solid) == 0:
        centre = float(np.average(np.arange(len(mass)) + 0.5, weights=mass))
        return centre - 0.5, centre + 0.5
    first, last = int(solid[0]), int(solid[-1])
    before = peak[first - 1] if first > 0 else 0.0
    after = peak[last + 1] if last + 1 < len(peak) else 0.0
    return first + 1 - peak[first] - before, last + peak[last] + after


def _stands(a: Seen, b: Seen, relation: str) -> bool:
    dx, dy = b.x - a.x, b.y - a.y
    forward = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation]
    sideways = dy if relation in ("left of", "right of") else dx
    return forward > abs(sideways)


def _check_noun(noun: Noun, things: Sequence[Seen | None], name: str) -> dict[str, bool]:
    right = {f"{name}shape": all(thing is not None and thing.shape == noun.shape for thing in things)}
    for attribute in ("colour", "size"):
        wanted = getattr(noun, attribute)
        if wanted:
            right[name + attribute] = all(thing is not None and getattr(thing, attribute) == wanted for thing in things)
    return right


def judge(picture: np.ndarray, prompt: Prompt) -> Judgement:
    """Check a picture against a prompt, attribute by attribute.

    Two nouns are matched with the things seen in whichever way leaves most attributes right. With nothing to see, or
    the wrong number of things, the count is wrong and the attributes are judged on what is there.
    """
    return judge_look(look(picture), prompt)


def judge_look(seen: Look, prompt: Prompt) -> Judgement:
    """`judge` of a picture that was looked at already."""
    background, things = seen
    right: dict[str, bool] = {}
    if len(prompt.nouns) == 1:
        noun = prompt.nouns[0]
        right = {"count": len(things) == noun.count, **_check_noun(noun, things or [None], "")}
    elif len(prompt.nouns) == 2:
        candidates: list[Seen | None] = [*things, *[None] * max(0, 2 - len(things))]
        matches = []
        for pair in itertools.permutations(candidates, 2):
            match = {"count": len(things) == 2}
            for i, (noun, thing) in enumerate(zip(prompt.nouns, pair, strict=True)):
                match |= _check_noun(noun, [thing], f"{'first' if i == 0 else 'second'} ")
            if prompt.relation:
                a, b = pair
                match["relation"] = a is not None and b is not None and _stands(a, b, prompt.relation)
            matches.append(match)
        right = max(matches, key=lambda match: sum(match.values()))
    if prompt.background:
        right["background"] = background == prompt.background
    return Judgement(right, things, background)


def category_prompt(category: str, rng: np.random.Generator) -> Prompt:
    """A random prompt of one of the six categories; half of them also name a background, half of the nouns a size."""

    def pick(values: Iterable[str]) -> str:
        values = tuple(values)
        return values[int(rng.integers(len(values)))]

    def noun(count: int = 1, colour: str | None = None) -> Noun:
        return Noun(pick(SHAPES), count, colour, pick(RADII) if rng.random() < 0.5 else None)

    background = pick(BACKGROUNDS) if rng.random() < 0.5 else None
    if category == "single object":
        return Prompt((noun(),), background=background)
    if category == "two objects":
        return Prompt((noun(), noun()), background=background)
    if category == "counting":
        return Prompt((noun(count=int(rng.integers(2, 4))),), background=background)
    if category == "colours":
        return Prompt((noun(colour=pick(COLOURS)),), background=background)
    if category == "position":
        return Prompt((noun(), noun()), pick(("left of", "right of", "above", "below")), background)
    if category == "colour attribution":
        return Prompt((noun(colour=pick(COLOURS)), noun(colour=pick(COLOURS))), background=background)
    raise ValueError(f"category {category!r} is unknown; known: {', '.join(CATEGORIES)}")


def shapes_eval_prompts(n: int, seed: int) -> list[tuple[str, Prompt]]:
    """`n` (category, prompt) pairs, the six categories in turn."""
    rng = np.random.default_rng(seed)
    return [(category, category_prompt(category, rng)) for category in itertools.islice(itertools.cycle(CATEGORIES), n)]
