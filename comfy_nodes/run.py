"""One adapter in one run of a sampler: its settings in noise levels, alpha, scale, and the record. torch only."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nft_pipeline.adapters.alpha_head import AlphaHead
from nft_pipeline.adapters.config import AdapterConfig
from nft_pipeline.dial.tilts import Tilt
from nft_pipeline.engine.stats import NFTStats, StatsRecorder
from nft_pipeline.engine.terms import alpha_before, read_alpha, term_scale
from nft_pipeline.errors import GuidanceError
from nft_pipeline.modes import MODES
from nft_pipeline.settings import GuidanceSettings

from .dial import chances, forecast_line
from .live_text import LiveText

Conds = Sequence[Mapping[str, Any]]  # ComfyUI's list of the prompts behind one prediction, each with its "uuid"


@dataclass(frozen=True)
class Plan:
    """What a person has set, checked.

    Args:
        tilt: lambda = 2 / beta, the strength in natural units; 0 is off. One for all pictures, or one for each.
        settings: law, cap, mode and guided rows; its interval and schedule are set when sampling starts.
        start, end: share of the sampling where guidance begins and ends, 0 being the first step.
        curve: points (share of the sampling, factor of the tilt); empty for 1 everywhere.
        rate: the share of liked pictures that the tilt was found for; 0 if none was asked for. At the CFG of a run it
            is found again.
    """

    tilt: Tilt
    settings: GuidanceSettings
    start: float = 0.0
    end: float = 1.0
    curve: tuple[tuple[float, float], ...] = ()
    rate: float = 0.0

    @property
    def partial(self) -> bool:
        """Whether less is done than the tilt says: not in every step, not at its full size, or with a cap."""
        return (self.start, self.end) != (0.0, 1.0) or bool(self.curve) or self.settings.cap is not None

    def settle(self, level_at: Callable[[float], float], guidance_scale: float | None = None) -> GuidanceSettings:
        """The settings in noise levels, for a model whose sampling goes through t = level_at(share), at a CFG."""
        low, high = level_at(self.end), level_at(self.start)
        points = {level_at(share): factor for share, factor in self.curve}
        return replace(
            self.settings,
            interval=(low, high),
            schedule=sorted(points.items()) if points else None,
            guidance_scale=self.settings.guidance_scale if guidance_scale is None else guidance_scale,
        )


@dataclass
class Reading:
    """What guidance does at one x of an evaluation, in every pass that asks about this x."""

    x: Tensor
    noise_level: Tensor  # (samples,)
    alpha: Tensor | None  # (samples,); None without a head, and where guidance is off
    scale: Tensor  # s, (samples,), with the cap in it
    push: Tensor  # relative to the predicted picture, (samples,); NaN where v_old is not known


@dataclass
class Evaluation:
    """One call of the guider by the sampler. It makes one pass of the model in most graphs, and several where other
    nodes ask once more (a perturbed model, windows of a long video)."""

    readings: list[Reading] = field(default_factory=list)
    predictions: int = 0  # that were asked for
    extra: int = 0  # that this adapter took beside them


class Run:
    """What lives as long as one run of a sampler, for one adapter.

    Args:
        config: the adapter's.
        head: its alpha head; None without one.
        tap: the module that the head reads, for an error.
        tilt: lambda.
        settings: in noise levels.
        steps: of the sampler, for the live text.
        model: the model that is guided; other models of the same guider are not.
        positive: uuid of the first entry of the conditional prompts, None if the guider has none.
        say: shows the live text.
        warnings: lines that it has to end with.
    """

    def __init__(
        self,
        config: AdapterConfig,
        head: AlphaHead | None,
        tap: str | None,
        tilt: Tilt,
        settings: GuidanceSettings,
        steps: int,
        model: Any,
        positive: Any,
        say: Callable[[str], None],
        warnings: Sequence[str] = (),
    ) -> None:
        self.config, self.tap, self.tilt, self.settings, self.steps = config, tap, tilt, settings, steps
        self.model, self.positive, self.warnings = model, positive, warnings
        self.recorder = StatsRecorder([config.name])
        self.on: float | Tensor | None = None  # the LoRA's scale in the passes of now, (samples,); None is off
        self.tokens: dict[tuple[int, Any], Tensor] | None = None  # by list and uuid; None where nobody listens
        self.names: dict[Any, Any] = {}  # uuids of passes with the LoRA on, by those of the prompts
        self.alpha: Tensor | None = None  # of the evaluation before
        self.evaluation: Evaluation | None = None
        self.met = False  # any prediction was asked for
        self.compared = False  # any pass with the LoRA on beside one without
        self.moved = False  # and they differed
        self._head, self._text = head, LiveText(say)
        self._chances: list[Tensor] = []  # of being liked, (samples,) of each step, NaN if not known

    @property
    def one_pass(self) -> bool:
        """Whether the mode never computes v_old."""
        return MODES[self.settings.mode].one_pass

    def is_positive(self, conds: Conds | None) -> bool:
        """Whether these are the conditional prompts, which alpha belongs to.

        Their first entry decides: ComfyUI adds entries with the uuids of other lists behind it, one for each area.
        """
        return bool(conds) and conds[0]["uuid"] == self.positive  # type: ignore[index]

    def guided(self, conds: Sequence[Conds | None]) -> list[int]:
        """Which lists of prompts are guided."""
        every = self.settings.guide == "both"
        return [i for i, cond in enumerate(conds) if cond is not None and (every or self.is_positive(cond))]

    def reading_at(self, x: Tensor) -> Reading | None:
        """What was found at this x in this evaluation: alpha is that of the model, not of another node's perturbed
        pass, which comes after it."""
        readings = self.evaluation.readings if self.evaluation is not None else []
        return next((found for found in readings if found.x is x or torch.equal(found.x, x)), None)

    def scale_before(self, t: Tensor) -> Tensor | None:
        """s, (samples,), where it is known before the model has run; else None."""
        factor = self.settings.multiplier(t)
        if not bool(factor.any()):
            return torch.zeros_like(t)
        if self.tap is None:
            return self._scale(None, t)
        return self._scale(alpha_before(self.config, self.alpha, t), t) if self.one_pass else None

    def needs_alpha(self, t: Tensor) -> bool:
        """Whether alpha is read at these noise levels."""
        return self.tap is not None and bool(self.settings.multiplier(t).any())

    @contextmanager
    def lora_at(self, scale: float | Tensor | None) -> Iterator[None]:
        """The LoRA at this scale in the passes inside the block."""
        outer, self.on = self.on, scale
        try:
            yield
        finally:
            self.on = outer

    def read(self, conds: Sequence[Conds | None], t: Tensor, scale: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """alpha and s, each (samples,), from the tokens of a pass.

        Args:
            conds: the lists of prompts it was made for.
            t: noise levels, (samples,).
            scale: s where it was known before; in mode "fast" the LoRA was on at it.

        Raises:
            GuidanceError: alpha was never read in this run.
        """
        if not self.needs_alpha(t):
            return None, torch.zeros_like(t) if scale is None else scale
        alphas = [
            self._alpha(tokens, entry, t, scale)
            for i, cond in enumerate(conds)
            if self.is_positive(cond)
            for entry in cond or ()
            if (tokens := (self.tokens or {}).get((i, entry["uuid"]))) is not None  # else not used at this noise level
        ]
        if alphas:
            alpha = torch.stack(alphas).mean(0).to(t.device)
        else:
            alpha = self._last_alpha(t, asked=any(map(self.is_positive, conds)))
        return alpha, self._scale(alpha, t) if scale is None else scale

    def _last_alpha(self, t: Tensor, asked: bool) -> Tensor:
        """alpha where this pass shows none: it is not of the conditional prompt, or a step cache skipped the model."""
        readings = self.evaluation.readings if self.evaluation is not None else []
        last = readings[-1].alpha if readings else self.alpha
        if last is None and asked:
            raise GuidanceError(
                f"the module {self.tap!r}, which the alpha head of {self.config.name!r} reads, did not run in the "
                "first step, so alpha is unknown. Bypass nodes that skip or replace the model's first steps, or set "
                'kind to "policy", which needs no head.'
            )
        return alpha_before(self.config, last, t)

    def _alpha(self, tokens: Tensor, entry: Mapping[str, Any], t: Tensor, lora_scale: Tensor | None) -> Tensor:
        device = tokens.device
        assert self._head is not None
        if next(self._head.parameters()).device != device:
            self._head = copy.deepcopy(self._head).to(device)  # the run's own, where nobody has moved the adapter's
        text = entry["model_conds"].get("c_crossattn")
        words = None if text is None else text.cond.to(device).expand(len(t), -1, -1)
        on = None if lora_scale is None else lora_scale.to(device)
        return read_alpha(self._head, self.config.name, tokens, t.to(device), words, on)

    def _scale(self, alpha: Tensor | None, t: Tensor) -> Tensor:
        return term_scale(self.config, self.tilt, alpha, self.settings.multiplier(t), t, self.settings)

    # The record.

    def finish(self, evaluation: Evaluation) -> None:
        """Record an evaluation, as the mean of what was found at each x, and show it."""
        readings = evaluation.readings
        if not readings:  # a step that another node skipped
            return
        t = readings[0].noise_level
        alphas = [found.alpha for found in readings if found.alpha is not None]
        alpha = torch.stack(alphas).mean(0) if alphas else None
        scale, push = (
            torch.stack(values).mean(0) for values in zip(*((r.scale, r.push) for r in readings), strict=True)
        )
        cost = 1 + evaluation.extra / evaluation.predictions
        self.alpha = self.alpha if alpha is None else alpha
        nan = torch.full_like(t, math.nan)
        self.recorder.step(t, (nan if alpha is None else alpha)[None], scale[None], push, 1 if cost == 1 else 2)
        liked = None
        if alpha is not None:
            factor = float(self.settings.multiplier(t).mean())
            tilt = tuple(one * factor for one in self.tilt) if isinstance(self.tilt, tuple) else self.tilt * factor
            liked = chances(self.config, alpha, tilt, t, self.settings)
        self._chances.append(nan if liked is None else liked)
        self._text.offer(partial(self._line, self.recorder.steps, alpha, scale, push, cost, liked))

    def _line(
        self, step: int, alpha: Tensor | None, scale: Tensor, push: Tensor, cost: float, liked: Tensor | None
    ) -> str:
        """What stands under the node after a step."""
        line = [f"step {step}/{self.steps}"]
        line += [f"alpha {alpha.mean():.2f}"] if alpha is not None else []
        line += [f"scale {scale.mean():.2f}"]
        line += [f"push {push.mean():.1%}"] if bool(push.isfinite().all()) else []
        lines = ["  ".join([*line, f"cost x{cost:.2g}"])]
        lines += [] if liked is None else [forecast_line(liked)]
        return "\n".join([*lines, *self.warnings])

    def settle(self) -> None:
        """Show the last step, when no other will come."""
        self._text.settle()

    def stats(self) -> NFTStats:
        """The record as a whole."""
        stats = self.recorder.stats()
        known = any(bool(chance.isfinite().any()) for chance in self._chances)
        return replace(stats, forecasts=torch.stack(self._chances)[None].float().cpu()) if known else stats
