"""What the emoji models learn from: true pictures, their latents and their captions, drawn at random."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..shapes.latents import PatchComponents
from .parts import SIZES
from .pictures import STYLES
from .world import BACKGROUNDS, INKS, World, compose, draw_sign, sign_prompt, thing_prompt


@dataclass(frozen=True)
class EmojiTraining:
    """Settings of the shipped emoji model."""

    steps: int = 3_000
    batch: int = 192
    lr: float = 2e-3  # AdamW's; Muon's is five times that
    average: float = 0.998  # of the running average of the weights, which is what is saved
    decay: float = 0.4  # the learning rate falls to nothing over this last part
    signs: float = 0.3  # of a batch
    drawn_signs: int = 40_000
    name: float = 0.8  # a caption names the thing with this probability, and so on
    kind: float = 0.6  # where it does not, it says what kind of thing
    style: float = 0.5
    background: float = 0.4
    empty: float = 0.08
    commas: float = 0.2  # "red apple, 3d, on pink" in place of "3d red apple on pink"
    misspelt: float = 0.2
    misspelt_more: float = 0.0  # of the signs that are right: what a last stage of training adds
    shift: float = 3.0  # of the noise levels: the sampler's
    seed: int = 0


class Pictures:
    """Latents and captions of the world's pictures, drawn at random."""

    def __init__(self, world: World, settings: EmojiTraining) -> None:
        self.world, self.settings = world, settings
        self.rng = np.random.default_rng(settings.seed)
        backgrounds = list(BACKGROUNDS)
        self.every = list(itertools.product(range(len(world.things)), range(len(STYLES)), range(len(BACKGROUNDS))))
        self.shown = [one for one in self.every if world.held_out_style(one[0]) != one[1]]
        signs = [self._sign() for _ in range(settings.drawn_signs)]
        self.said = [(word, background) for word, _, background, _, _ in signs]
        some = self.rng.permutation(len(self.shown))[:4000]
        composed = np.stack([self.composed(*self.shown[i]) for i in some])
        self.drawn = np.stack([draw_sign(written, backgrounds[b], ink, font) for _, written, b, ink, font in signs])
        self.components = PatchComponents.of_pictures(
            np.concatenate([composed, self.drawn[:1500]]), SIZES.latent_channels
        )
        if settings.misspelt_more:  # after the components, which have to be those of the VAE
            self._misspell(signs)
        self.things = self.latents_of(self.shown)
        self.signs = torch.cat(
            [self.components.encode(self.drawn[i : i + 500]).half() for i in range(0, len(signs), 500)]
        )

    def latents_of(self, combinations: list[tuple[int, int, int]]) -> Tensor:
        """Scaled latents of true pictures, by the numbers of thing, style and background: float16 (N, 16, 8, 8)."""
        parts = (combinations[i : i + 500] for i in range(0, len(combinations), 500))
        return torch.cat(
            [self.components.encode(np.stack([self.composed(*one) for one in part])).half() for part in parts]
        )

    def draw(self, n: int) -> np.ndarray:
        """n pictures, uint8 (n, 64, 64, 3)."""
        signs = self.rng.binomial(n, self.settings.signs)
        things = self.rng.integers(len(self.shown), size=n - signs)
        return np.stack(
            [
                *self.drawn[self.rng.integers(len(self.drawn), size=signs)],
                *(self.composed(*self.shown[i]) for i in things),
            ]
        )

    def batch(self) -> tuple[Tensor, list[str]]:
        """Scaled latents (B, 16, 8, 8) and their captions."""
        settings, rng = self.settings, self.rng
        signs = rng.binomial(settings.batch, settings.signs)
        of_signs = rng.integers(len(self.said), size=signs)
        of_things = rng.integers(len(self.shown), size=settings.batch - signs)
        captions = [self._sign_caption(i) for i in of_signs] + [self._thing_caption(i) for i in of_things]
        captions = ["" if rng.random() < settings.empty else caption for caption in captions]
        return torch.cat([self.signs[of_signs], self.things[of_things]]).float(), captions

    def composed(self, thing: int, style: int, background: int) -> np.ndarray:
        """The true picture of a thing in a style on a background, by their numbers: uint8 (64, 64, 3)."""
        return compose(self.world.opaque[thing, style], list(BACKGROUNDS)[background])

    def _sign(self) -> tuple[str, str, int, int, Path]:
        rng, world = self.rng, self.world
        word = world.words[rng.integers(len(world.words))]
        written = _misspelt(word, rng) if rng.random() < self.settings.misspelt else word
        font = world.fonts[rng.integers(len(world.fonts))]
        return word, written, int(rng.integers(len(BACKGROUNDS))), int(rng.integers(len(INKS))), font

    def _misspell(self, signs: list[tuple[str, str, int, int, Path]]) -> None:
        rng = np.random.default_rng(self.settings.seed + 1)
        for i, (word, written, background, ink, font) in enumerate(signs):
            if word == written and rng.random() < self.settings.misspelt_more:
                self.drawn[i] = draw_sign(_misspelt(word, rng), list(BACKGROUNDS)[background], ink, font)

    def _sign_caption(self, i: int) -> str:
        word, background = self.said[i]
        named = list(BACKGROUNDS)[background] if self.rng.random() < self.settings.background else ""
        return sign_prompt(word, named)

    def _thing_caption(self, i: int) -> str:
        thing, style, background = self.shown[i]
        settings, shown = self.settings, self.world.things[thing]
        chance = self.rng.random(4) < (settings.name, settings.kind, settings.style, settings.background)
        return thing_prompt(
            shown.name if chance[0] else shown.kind if chance[1] else "",
            list(STYLES)[style] if chance[2] else "",
            list(BACKGROUNDS)[background] if chance[3] else "",
            commas=self.rng.random() < settings.commas,
        )


def _misspelt(word: str, rng: np.random.Generator) -> str:
    """One letter by chance another one; once in 26 times it is the same."""
    place = rng.integers(len(word))
    return word[:place] + chr(ord("A") + rng.integers(26)) + word[place + 1 :]
