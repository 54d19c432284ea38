"""Pictures of an adapter at a weight, for a calibration: the guided pipeline itself draws them.

Weights are what a calibration has to try, and the pipeline takes strengths. So the adapter gets a dial whose map is the
identity, under which the tilt that is asked for is the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nft_pipeline.dial.measured import MAX_WEIGHT, Dial, TiltMap
from nft_pipeline.modes import MODES

from ..bases.base import Conditions, TrainBase, rows_of


class Interrupted(RuntimeError):
    """The calibration was asked to stop while it drew."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn.

    Args:
        pictures: uint8 (n, H, W, 3).
        latents: what they were decoded from, (n, ...), on the CPU.
        alphas: alpha of each step and picture, (steps, n), NaN without a head.
        levels: the noise levels of the steps, (steps,).
    """

    pictures: np.ndarray
    latents: Tensor
    alphas: np.ndarray
    levels: np.ndarray


class Draws:
    """Draws with one adapter.

    Args:
        base: the base model, whose pipeline is a guided one with the adapter loaded.
        name: the adapter's name in that pipeline.
        texts: the prompts.
        conditions: theirs, one row each.
        empty: those of the empty prompt, with classifier-free guidance.
        batch: pictures drawn at once.
        stop: asked between batches whether to stop.
    """

    def __init__(
        self,
        base: TrainBase,
        name: str,
        texts: Sequence[str],
        conditions: Conditions,
        empty: Conditions | None,
        batch: int,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.base, self.name, self.texts, self.batch, self.stop = base, name, list(texts), batch, stop
        self.conditions, self._empty = conditions, empty
        self.config = base.pipe.nft_adapters[name].config
        self.forwards = 0  # of pictures: a step of one picture in one pass is one
        self.bar: tqdm[Any] | None = None

    @property
    def head(self) -> Any:
        """The adapter's alpha head, None for a policy."""
        return self.base.pipe.nft_adapters[self.name].head

    def draw(
        self,
        rows: Sequence[tuple[int, int]],
        weights: float | Sequence[float],
        mode: str,
        slope: float,
        dial: Dial | None = None,
    ) -> Drawn:
        """Draw `rows`, (prompt, seed) each, at one weight or each at its own.

        Args:
            weights: 0 is the base model.
            mode: "single" or "two_pass".
            slope: how far alpha is trusted.
            dial: has the base rate and the offsets; None if they are not known yet.

        Raises:
            Interrupted: it was asked to stop.
        """
        loaded = self.base.pipe._nft_loaded[self.name]
        config = replace(self.config, dial=_probe(self.config.base_rate, mode, slope, dial))
        strengths = np.broadcast_to(weights, len(rows)) / config.tilt
        self.base.pipe._nft_loaded[self.name] = replace(loaded, adapter=replace(loaded.adapter, config=config))
        call = dict(self.base.call)
        self.base.call |= {"nft_mode": mode}
        try:
            return self._draw(rows, strengths, MODES[mode].one_pass or not strengths.any())
        finally:
            self.base.call = call
            self.base.pipe._nft_loaded[self.name] = loaded

    def _draw(self, rows: Sequence[tuple[int, int]], strengths: np.ndarray, one_pass: bool) -> Drawn:
        prompt = torch.tensor([prompt for prompt, _ in rows])
        one = self.base.latent_shape(1)
        noise = torch.cat([torch.randn(one, generator=torch.Generator().manual_seed(seed)) for _, seed in rows])
        latents, alphas, levels = [], [], np.zeros(0)

        def draw(part: Tensor) -> Tensor:
            if self.stop():
                raise Interrupted("the calibration was interrupted")
            own = strengths[part.numpy()].tolist()
            self.base.call["nft_strength"] = own[0] if len(set(own)) == 1 else own
            return self.base.sample_batch(rows_of(self.conditions, prompt[part]), noise[part], self._empty)

        for part, drawn in self.base.fits.parts("drawing", torch.arange(len(rows)), self.batch, draw):
            latents.append(drawn)
            stats = self.base.pipe.nft_stats
            levels = stats.noise_level.mean(1).numpy()
            alphas.append(stats.alphas[0].numpy())
            self.forwards += len(part) * stats.steps * (1 if one_pass else 2)
            if self.bar is not None:
                self.bar.update(len(part) * (1 if one_pass else 2))
        together = torch.cat(latents)
        return Drawn(self.base.decode_latents(together), together, np.concatenate(alphas, axis=1), levels)


def _probe(base_rate: float | None, mode: str, slope: float, dial: Dial | None) -> Dial:
    """A dial whose tilt is the weight."""
    ends = (-MAX_WEIGHT, 0.0, MAX_WEIGHT)
    nothing = (0.0, 0.0, 0.0)
    identity = TiltMap(
        mode=mode, guidance_scale=1.0, guide="both", slope=slope, tilts=ends, weights=ends, rates=nothing,
        errors=nothing, pictures=1,
    )  # fmt: skip
    if dial is not None:
        return replace(dial, maps=(identity,))
    rate = 0.5 if base_rate is None else base_rate
    return Dial(
        judged_by="reward", judge="none yet", prompts=1, pictures=1, rate=rate, rate_error=0.0, spread=0.0, steps=1,
        slope=1.0, offsets=(), maps=(identity,),
    )  # fmt: skip
