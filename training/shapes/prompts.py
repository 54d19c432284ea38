"""Prompts on the shapes world, under the names by which a training run asks for them: `PROMPTS`, at the end."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from .score import CATEGORIES, shapes_eval_prompts
from .world import BACKGROUNDS, RADII, SHAPES, Noun, Prompt

HELD_OUT_SEED = 7_000_000  # ShapesEval prompts with this seed are never trained on


def _open_colour_prompts() -> list[str]:
    """All prompts for one thing that leave its colour open, in a fixed shuffled order."""
    prompts = [
        Prompt((Noun(shape, size=size),), background=background).text()
        for shape, size, background in itertools.product(SHAPES, (None, *RADII), (None, *BACKGROUNDS))
    ]
    return [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))]


def warm_prompts() -> list[str]:
    """45 prompts that leave the colour open: "a small ring on gray"."""
    return _open_colour_prompts()[:45]


def warm_prompts_held_out() -> list[str]:
    """The other 15, for measuring."""
    return _open_colour_prompts()[45:]


def shapes_eval_training_prompts(n: int = 3000) -> list[str]:
    """ShapesEval prompts for training, the six categories in turn; none of the held-out texts is among them.

    Some categories have few texts (single objects have sixty), so these texts are repeated.
    """
    held_out = set(shapes_eval_held_out())
    texts: dict[str, dict[str, None]] = {category: {} for category in CATEGORIES}
    for category, prompt in shapes_eval_prompts(4 * n, seed=1):
        if prompt.text() not in held_out:
            texts[category][prompt.text()] = None
    endless = [itertools.cycle(texts[category]) for category in CATEGORIES]
    return [next(endless[i % len(endless)]) for i in range(n)]


def shapes_eval_held_out(n: int = 600) -> list[str]:
    """Prompts for measuring, a hundred of each category; a text may come twice."""
    return [prompt.text() for _, prompt in shapes_eval_prompts(n, seed=HELD_OUT_SEED)]


PROMPTS: dict[str, Callable[[], list[str]]] = {
    "shapes_warm": warm_prompts,
    "shapes_warm_held_out": warm_prompts_held_out,
    "shapes_eval": shapes_eval_training_prompts,
    "shapes_eval_held_out": shapes_eval_held_out,
}
