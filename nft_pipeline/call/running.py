"""A guided call while it runs: the engines on the pipeline's denoisers, and the record of the steps so far."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..adapters.config import AdapterConfig
from ..dial.forecast import forecast
from ..dial.tilts import Tilt, check_signs, for_pictures, tilts_of
from ..engine.engine import NFTEngine
from ..engine.loading import LoadedAdapter, find_denoisers
from ..engine.stats import NFTStats
from ..engine.terms import Term
from ..engine.trace import Trace
from ..families.batch import batch_reader
from ..families.registry import family_of
from ..settings import GuidanceSettings, warn_of_weights


@dataclass
class RunningCall:
    """One call of a guided pipeline, which callbacks may look at and change.

    Args:
        configs: of the loaded adapters, by name.
        tilts: of them, for all pictures or for each.
        settings: of the call.
        own: of each adapter, by name.
        batch: the prompts, and the pictures drawn of each; None if that is not known.
        trace: keeps the record.
    """

    configs: Mapping[str, AdapterConfig]
    tilts: dict[str, Tilt]
    settings: GuidanceSettings
    own: Mapping[str, GuidanceSettings]
    batch: tuple[int, int] | None
    trace: Trace

    def __post_init__(self) -> None:
        self._engines: list[NFTEngine] = []
        self.change(self.tilts)

    def change(self, tilts: Mapping[str, Tilt]) -> None:
        """From the next forward on, these tilts.

        Raises:
            GuidanceError: they are not as many as the pictures, or have no law in this combination.
        """
        tilts = dict(tilts) if self.batch is None else for_pictures(tilts, *self.batch)
        check_signs(self.settings.combine, tilts)
        warn_of_weights(self.configs, tilts, self.own)
        self.tilts = tilts
        for engine in self._engines:
            for term in engine.terms:
                term.tilt = tilts[term.name]

    def set_strength(self, strength: Any) -> None:
        """The same by strengths, as the call's nft_strength. Raises GuidanceError for a value out of range too."""
        self.change(tilts_of(self.configs, strength))

    def prepare(
        self, pipe: Any, loaded: Mapping[str, LoadedAdapter], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Make an engine for each denoiser; arguments as `nft_pipeline.call.guided_call.run_recorded`."""
        component = next(iter(self.configs.values())).component
        for part, denoiser in find_denoisers(pipe, pipe._nft_stock_class, component).items():
            terms = [
                Term(
                    entry.adapter,
                    entry.loras[part],
                    self.tilts[name],
                    name=name,
                    old_name=entry.old.get(part),
                    component=part,
                    own=self.own[name],
                )
                for name, entry in loaded.items()
                if part in entry.loras
            ]
            if terms:
                doubled = batch_reader(family_of(denoiser), pipe, args, kwargs)
                engine = NFTEngine(
                    denoiser, terms, self.settings, scheduler=pipe.scheduler, doubled=doubled, trace=self.trace
                )
                self._engines.append(engine)

    @contextlib.contextmanager
    def guided(self) -> Iterator[None]:
        """Within it the engines are on."""
        with contextlib.ExitStack() as stack:
            for engine in self._engines:
                stack.enter_context(engine)
            yield

    def stats(self) -> NFTStats:
        """The record so far, with the tilts as they are and what they let each picture hope for."""
        stats = self.trace.recorder.stats()
        samples = stats.noise_level.shape[1]
        if not stats.steps or any(isinstance(tilt, tuple) and len(tilt) != samples for tilt in self.tilts.values()):
            return stats
        each = [torch.tensor(tilt).expand(samples) for tilt in self.tilts.values()]
        stats = replace(stats, tilts=torch.stack(each).float())
        if not bool(stats.alphas.isfinite().any()):
            return stats
        forecasts = [
            forecast(config, self.own[name].map_for(config), alpha, self.tilts[name], stats.noise_level)
            for (name, config), alpha in zip(self.configs.items(), stats.alphas, strict=True)
        ]
        return replace(stats, forecasts=torch.stack(forecasts))

    def record(self) -> NFTStats | None:
        """The record of the ended call, or None with a warning: whatever is wrong with it, the pictures are there."""
        try:
            return self.stats()
        except Exception as error:
            warnings.warn(f"the record of this call could not be made, so nft_stats is None: {error}", stacklevel=2)
            return None
