"""A world in which a dial's truth is known: pictures that are one number, liked by a logistic law of the weight.

    liked if   logit p_prompt + shift(weight) + u > 0,   u logistic, the same at every weight for the same seed

So at a weight each prompt's odds are its base odds times e^shift: the odds law itself, whose tilt is the shift.
`KnownDraws` stands in for the room's `Draws`, and the true rate at any weight is a finite mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from nft_pipeline.adapter import AdapterConfig
from nft_pipeline.dial.measured import Dial, TiltMap
from nft_pipeline.dial.scale import BARELY
from nft_pipeline.training.dial.draws import Drawn

from .adapters import config_values

STEPS = 4


def sigmoid(x: Any) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(x, dtype=float)))


def tilt_map(**changed: Any) -> TiltMap:
    """A map whose weights are half its tilts."""
    values: dict[str, Any] = {
        "mode": "single",
        "guidance_scale": 1.0,
        "guide": "both",
        "slope": 0.5,
        "tilts": (-2.0, 0.0, 1.0, 4.0),
        "weights": (-1.0, 0.0, 0.5, 2.0),
        "rates": (0.1, 0.4, 0.6, 0.9),
        "errors": (0.02, 0.01, 0.02, 0.03),
        "pictures": 300,
    }
    return TiltMap(**{**values, **changed})


def a_dial(*maps: TiltMap, **changed: Any) -> Dial:
    """A sound dial; with one map of `tilt_map` if none are given."""
    values: dict[str, Any] = {
        "judged_by": "reward",
        "judge": "red",
        "prompts": 24,
        "pictures": 240,
        "rate": 0.4,
        "rate_error": 0.01,
        "spread": 0.1,
        "steps": 14,
        "slope": 0.8,
        "offsets": ((0.2, 0.0), (0.8, 0.5)),
        "maps": maps or (tilt_map(),),
    }
    return Dial(**{**values, **changed})


class KnownDraws:
    """Draws pictures whose chance to be liked is known; each picture's first latent is 1 if it is liked.

    Args:
        rates: the base rate of each prompt.
        shift: the tilt that a weight, a mode and a slope give, shift(weight, mode, slope).
        kind: of the adapter; a policy has no head.
        sharpness: how much alpha tells about the picture at the lowest noise, in standard deviations of its logit.
        seed: of the world.
    """

    def __init__(
        self,
        rates: Sequence[float],
        shift: Callable[[float, str, float], float],
        kind: str = "policy",
        sharpness: float = 3.0,
        seed: int = 0,
    ) -> None:
        self.rates, self.shift, self.sharpness, self.seed = np.asarray(rates, dtype=float), shift, sharpness, seed
        self.texts = [f"prompt {place}" for place in range(len(rates))]
        self.config = AdapterConfig.from_dict(config_values(kind=kind))
        self.head = None if kind == "policy" else object()
        self.base = SimpleNamespace(stock_guidance_scale=1.0, noise_range=lambda: (0.0, 1.0))
        self.forwards, self.bar = 0, None
        self.drawn: list[tuple[int, float, str, float]] = []  # pictures, weight, mode and slope, by call and weight

    def true_rate(self, weight: float, mode: str = "single", slope: float = 0.0, rates: Any = None) -> float:
        """The share of liked pictures at a weight, over the prompts or over others with these base rates."""
        rates = self.rates if rates is None else np.asarray(rates)
        return float(sigmoid(np.log(rates / (1 - rates)) + self.shift(weight, mode, slope)).mean())

    def draw(
        self,
        rows: Sequence[tuple[int, int]],
        weights: float | Sequence[float],
        mode: str,
        slope: float,
        dial: Dial | None = None,
    ) -> Drawn:
        """As `Draws.draw`."""
        own = np.broadcast_to(weights, len(rows)).tolist()
        self.drawn += [(own.count(weight), weight, mode, slope) for weight in dict.fromkeys(own)]
        rates = self.rates[[prompt for prompt, _ in rows]]
        random = [np.random.default_rng([self.seed, seed]) for _, seed in rows]
        u = np.array([generator.logistic() for generator in random])
        moved = np.array([0.0 if weight == BARELY else self.shift(weight, mode, slope) for weight in own])
        liked = np.log(rates / (1 - rates)) + moved + u > 0
        pictures = np.stack([generator.integers(0, 255, (2, 2, 3)) for generator in random]).astype(np.uint8)
        levels = np.linspace(1, 1 / STEPS, STEPS)
        latents = torch.tensor(np.stack([liked, np.arange(len(rows))], 1), dtype=torch.float32)
        self.forwards += len(rows) * STEPS * (2 if mode == "two_pass" else 1)
        return Drawn(pictures, latents, np.repeat(rates[None], STEPS, 0), levels)

    def alpha(self, draws: Any, latents: torch.Tensor, prompts: torch.Tensor, level: float, noise: Any) -> np.ndarray:
        """In the place of `read_noised`: a head that is right, and knows less the more noise there is."""
        liked, rates = latents[:, 0].numpy(), self.rates[prompts.numpy()]
        d = self.sharpness * (1 - level)
        random = np.random.default_rng([self.seed, int(1e6 * level)]).standard_normal(len(liked))
        return sigmoid(np.log(rates / (1 - rates)) + (liked - 0.5) * d**2 + d * random)


def judge_liked(drawn: Drawn, prompts: Sequence[int]) -> np.ndarray:
    """Reads from a picture of `KnownDraws` whether it is liked."""
    return drawn.latents[:, 0].numpy().astype(float)
