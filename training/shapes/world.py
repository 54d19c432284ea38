"""The shapes world: what can be drawn, how it is drawn, and how a prompt describes it.

A `Scene` is one to three `Thing`s on a plain background, 64 x 64 pixels, drawn from signed distances so that every
edge is anti-aliased. A `Prompt` names any part of a scene and leaves the rest open; its text is the only thing the
model ever sees. Both are plain data, so the same grammar draws training pictures, writes captions and judges samples
(`score.py`).

Coordinates are pixels, origin at the top left, x to the right, y down. `r` is half the side of the square that bounds
a thing, whatever its shape.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

SIZE = 64
SHAPES = ("circle", "square", "triangle", "cross", "ring")
PLURALS = {shape: shape + ("es" if shape == "cross" else "s") for shape in SHAPES}
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 40),
    "orange": (250, 140, 25),
    "yellow": (245, 225, 60),
    "green": (35, 160, 70),
    "blue": (45, 95, 225),
    "purple": (150, 55, 180),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "gray": (135, 135, 135),
    "black": (15, 15, 15),
}
RADII = {"small": 8.0, "large": 12.0}
GRID = 16.0  # centres stand on a grid of this many pixels, a token of the denoiser
COUNTS = {1: "a", 2: "two", 3: "three"}
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
T = TypeVar("T")


@dataclass(frozen=True)
class Thing:
    """One drawn thing. `x`, `y`, `r` in pixels."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    r: float


@dataclass(frozen=True)
class Scene:
    """Up to three things on a background. For two different things `relation` says where the first is to the second."""

    things: tuple[Thing, ...]
    background: str
    relation: str | None = None


@dataclass(frozen=True)
class Noun:
    """One noun phrase of a prompt: "two small red circles". None leaves an attribute open."""

    shape: str
    count: int = 1
    colour: str | None = None
    size: str | None = None

    def text(self) -> str:
        """The noun as a prompt names it, with its article or number, such as "two small red circles"."""
        shape = self.shape if self.count == 1 else PLURALS[self.shape]
        words = [word for word in (self.size, self.colour, shape) if word]
        article = "an" if self.count == 1 and words[0][0] in "aeiou" else COUNTS[self.count]
        return " ".join([article, *words])


@dataclass(frozen=True)
class Prompt:
    """One or two noun phrases, the relation of the first to the second (None is "and"), and the background.

    Prompts of two nouns have one thing each. The empty prompt (no nouns) describes every scene.
    """

    nouns: tuple[Noun, ...] = ()
    relation: str | None = None
    background: str | None = None

    def text(self) -> str:
        """The prompt as the model reads it, e.g. "a large red circle left of a cross on gray"."""
        joined = f" {self.relation or 'and'} ".join(noun.text() for noun in self.nouns)
        return joined + (f" on {self.background}" if self.background else "")

    @classmethod
    def parse(cls, text: str) -> Prompt:
        """Read a prompt back from its text.

        Raises:
            ValueError: a word that is not in the grammar, naming it and what could stand there.
        """
        words = text.lower().replace(".", " ").split()
        background = None
        if len(words) >= 2 and words[-2] == "on":
            background = _one_of(words[-1], BACKGROUNDS, text)
            words = words[:-2]
        joined, relation, nouns = " ".join(words), None, []
        for candidate in (*RELATIONS, "and"):
            if f" {candidate} " in f" {joined} ":
                relation = None if candidate == "and" else candidate
                left, right = f" {joined} ".split(f" {candidate} ", 1)
                nouns = [left, right]
                break
        else:
            nouns = [joined] if joined else []
        parsed = tuple(_parse_noun(noun, text) for noun in nouns)
        if len(parsed) == 2 and any(noun.count != 1 for noun in parsed):
            raise ValueError(f"{text!r}: of two nouns each may only be one thing; write 'a', not a number")
        return cls(parsed, relation, background)


def _one_of(word: str, allowed: Iterable[str], text: str) -> str:
    if word not in allowed:
        raise ValueError(f"{text!r}: {word!r} is not a word the shapes model knows here; known: {', '.join(allowed)}")
    return word


def _parse_noun(phrase: str, text: str) -> Noun:
    words = phrase.split()
    counts = {word: count for count, word in COUNTS.items()} | {"an": 1}
    count = counts[_one_of(words.pop(0), counts, text)] if words else 1
    if not words:
        raise ValueError(f"{text!r}: a noun phrase is missing; write for example 'a red circle'")
    shapes = {shape if count == 1 else PLURALS[shape]: shape for shape in SHAPES}
    shape = shapes[_one_of(words.pop(), shapes, text)]
    size = words.pop(0) if words and words[0] in RADII else None
    colour = _one_of(words.pop(0), COLOURS, text) if words else None
    if words:
        raise ValueError(f"{text!r}: {' '.join(words)!r} is one attribute too many; write size, colour, shape")
    return Noun(shape, count, colour, size)


# --- drawing -------------------------------------------------------------------------------------------------------


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Distance in pixels to the edge of `shape` centred at 0 with half side `r`, negative inside (broadcasts)."""
    if shape == "circle":
        return np.hypot(x, y) - r
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - r
    if shape == "triangle":  # apex up: base y = r, sides through (0, -r) and (+-r, r)
        return np.maximum(y - r, (2 * abs(x) - (y + r)) / np.sqrt(5.0))
    if shape == "cross":
        arm = r / 3
        return np.minimum(np.maximum(abs(x) - arm, abs(y) - r), np.maximum(abs(x) - r, abs(y) - arm))
    if shape == "ring":
        return abs(np.hypot(x, y) - 0.75 * r) - 0.25 * r
    raise ValueError(f"shape {shape!r} is unknown; known: {', '.join(SHAPES)}")


def coverage(shape: str, x: float, y: float, r: float) -> np.ndarray:
    """How much of each pixel the thing covers, in [0, 1], shape (64, 64)."""
    grid = np.arange(SIZE) + 0.5
    return np.clip(0.5 - signed_distance(shape, grid[None, :] - x, grid[:, None] - y, np.asarray(r)), 0.0, 1.0)


def draw(scene: Scene) -> np.ndarray:
    """The picture of a scene, uint8, shape (64, 64, 3)."""
    picture = np.broadcast_to(np.array(BACKGROUNDS[scene.background], float), (SIZE, SIZE, 3))
    for thing in scene.things:
        cover = coverage(thing.shape, thing.x, thing.y, thing.r)[..., None]
        picture = picture * (1 - cover) + np.array(COLOURS[thing.colour], float) * cover
    return np.rint(picture).astype(np.uint8)


# --- sampling scenes and captions ------------------------------------------------------------------------------------


def _pick(rng: np.random.Generator, values: Iterable[Any]) -> Any:
    values = tuple(values)
    return values[int(rng.integers(len(values)))]


def _centre(rng: np.random.Generator, low: float, high: float, steps: int) -> float:
    """The middle of [low, high], or up to `steps` grid steps off it to either side."""
    return (low + high) / 2 + GRID * int(rng.integers(-steps, steps + 1))


def scene_for(prompt: Prompt, rng: np.random.Generator, stray: int = 0) -> Scene:
    """A scene that obeys `prompt`; whatever the prompt leaves open is drawn evenly.

    Things stand in the middle of the picture, of its halves or of its quarters, so that nothing is left open that a
    prompt cannot name. With `stray` they stand up to so many grid steps off it, along sides as long as the picture.
    """
    if not prompt.nouns:
        return sample_scene(rng, stray)
    background = prompt.background or _pick(rng, BACKGROUNDS)
    half = SIZE / 2

    def thing(noun: Noun, box: tuple[float, float, float, float], colour: str, size: str) -> Thing:
        x0, x1, y0, y1 = box
        x, y = (_centre(rng, low, high, stray if high - low == SIZE else 0) for low, high in ((x0, x1), (y0, y1)))
        return Thing(noun.shape, colour, size, x, y, RADII[size])

    def attributes(noun: Noun) -> tuple[str, str]:
        return noun.colour or _pick(rng, COLOURS), noun.size or _pick(rng, RADII)

    left, right = (0, half, 0, SIZE), (half, SIZE, 0, SIZE)
    top, bottom = (0, SIZE, 0, half), (0, SIZE, half, SIZE)
    boxes = {"left of": (left, right), "right of": (right, left), "above": (top, bottom), "below": (bottom, top)}
    if len(prompt.nouns) == 2:
        relation = prompt.relation or _pick(rng, RELATIONS)
        pair = zip(prompt.nouns, boxes[relation], strict=True)
        things = tuple(thing(noun, box, *attributes(noun)) for noun, box in pair)
        return Scene(things, background, relation)
    noun = prompt.nouns[0]
    colour, size = attributes(noun)
    if noun.count == 1:
        return Scene((thing(noun, (0, SIZE, 0, SIZE), colour, size),), background)
    if noun.count == 2:
        places: Sequence = boxes[_pick(rng, RELATIONS)]
    else:
        quarters = [(x, x + half, y, y + half) for x, y in itertools.product((0.0, half), repeat=2)]
        del quarters[int(rng.integers(4))]
        places = quarters
    return Scene(tuple(thing(noun, box, colour, size) for box in places), background)


def sample_scene(rng: np.random.Generator, stray: int = 0) -> Scene:
    """A scene of the training distribution: 35 % one thing, 45 % two different things, 20 % two or three of a kind.

    `stray` as in `scene_for`.
    """
    kind = rng.random()
    if kind < 0.35:
        nouns: tuple[Noun, ...] = (Noun(_pick(rng, SHAPES)),)
    elif kind < 0.80:
        nouns = (Noun(_pick(rng, SHAPES)), Noun(_pick(rng, SHAPES)))
    else:
        nouns = (Noun(_pick(rng, SHAPES), count=int(rng.integers(2, 4))),)
    return scene_for(Prompt(nouns), rng, stray)


def describe(scene: Scene) -> Prompt:
    """The prompt that names everything in the scene."""
    first = scene.things[0]
    if scene.relation is None:
        nouns: tuple[Noun, ...] = (Noun(first.shape, len(scene.things), first.colour, first.size),)
    else:
        nouns = tuple(Noun(thing.shape, 1, thing.colour, thing.size) for thing in scene.things)
    return Prompt(nouns, scene.relation, scene.background)


def drop_attributes(prompt: Prompt, rng: np.random.Generator, keep: float = 0.5) -> Prompt:
    """Leave each attribute of a caption open with probability 1 - keep, and name two things in either order."""

    def kept(value: T) -> T | None:
        return value if rng.random() < keep else None

    nouns = tuple(replace(noun, colour=kept(noun.colour), size=kept(noun.size)) for noun in prompt.nouns)
    relation = kept(prompt.relation)
    if len(nouns) == 2 and rng.random() < 0.5:
        nouns, relation = nouns[::-1], OPPOSITE[relation] if relation else None
    return Prompt(nouns, relation, kept(prompt.background))


def named_attributes(prompt: Prompt) -> list[tuple[str, int]]:
    """The attributes a prompt names, as (attribute, index of the noun); relation and background have index 0."""
    named = []
    for i, noun in enumerate(prompt.nouns):
        named += [("shape", i)] + [(a, i) for a in ("colour", "size") if getattr(noun, a)]
        if len(prompt.nouns) == 1:
            named.append(("count", i))
    named += [(a, 0) for a in ("relation", "background") if getattr(prompt, a)]
    return named


def change_one(prompt: Prompt, rng: np.random.Generator) -> Prompt:
    """The same prompt with one named attribute replaced by another value."""
    named = named_attributes(prompt)
    attribute, i = named[int(rng.integers(len(named)))]
    values = {"shape": SHAPES, "colour": COLOURS, "size": RADII, "count": COUNTS, "relation": RELATIONS}
    owner = prompt if attribute in ("relation", "background") else prompt.nouns[i]
    allowed = values.get(attribute, BACKGROUNDS)
    other = _pick(rng, [value for value in allowed if value != getattr(owner, attribute)])
    change: dict[str, Any] = {attribute: other}
    if owner is prompt:
        return replace(prompt, **change)
    nouns = tuple(replace(noun, **change) if j == i else noun for j, noun in enumerate(prompt.nouns))
    return replace(prompt, nouns=nouns)


def caption(scene: Scene, rng: np.random.Generator, *, keep: float, wrong: float, empty: float) -> Prompt:
    """A training caption: attributes dropped, one of them wrong with probability `wrong`, nothing with `empty`.

    Wrong captions are made on purpose: a base model that obeys only part of its prompts can be taught by a reward.
    """
    if rng.random() < empty:
        return Prompt()
    prompt = drop_attributes(describe(scene), rng, keep)
    return change_one(prompt, rng) if rng.random() < wrong else prompt
