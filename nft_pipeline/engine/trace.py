"""What lives as long as one call of the pipeline: the record of its steps, each head's last alpha, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .denoiser_call import DenoiserCall
from .stats import StatsRecorder


class DraftDone(Exception):
    """Raised out of a denoiser's hook to end a call after the step that was asked for; whoever asked catches it."""


@dataclass
class Trace:
    """The record of a call, and the alpha of the step before by adapter name.

    A pipeline with two denoisers, one for high and one for low noise, has one trace and two engines.

    Args:
        recorder: keeps the record.
        alphas: of the step before, by adapter name.
        watch: whether heads are asked in steps that are not guided too.
        stop_after: the step after which the call is ended by `DraftDone`, counted from 1; None for a whole call.
    """

    recorder: StatsRecorder = field(default_factory=StatsRecorder)
    alphas: dict[str, Tensor] = field(default_factory=dict)
    watch: bool = False
    stop_after: int | None = None

    def ends_with(self, call: DenoiserCall) -> bool:
        """Whether the call of the pipeline is ended when this forward is recorded, so that its output goes nowhere."""
        return not call.auxiliary and self.recorder.steps + 1 == self.stop_after

    def record(
        self,
        call: DenoiserCall,
        alphas: Sequence[Tensor | None] | None,
        scales: Sequence[Tensor],
        push: Tensor | float,
        passes: int,
    ) -> None:
        """Add a step to the record; an auxiliary call only adds its forwards to the step it belongs to.

        Args:
            call: the forward that was guided.
            alphas: of each term, (samples,), None where no head was asked; None for all of them.
            scales: of each term, (samples,).
            push: `guidance.relative_push`, (samples,), or one number for all samples.
            passes: forwards that were spent.

        Raises:
            DraftDone: it is the step to stop after.
        """
        ended = self.ends_with(call)
        if call.auxiliary and self.recorder.steps:
            self.recorder.more_passes(passes)
            return
        nan = torch.full_like(call.noise_level, math.nan)
        read = [nan if alpha is None else alpha for alpha in alphas or [None] * len(scales)]
        pushes = push if isinstance(push, Tensor) else torch.full_like(call.noise_level, push)
        self.recorder.step(call.noise_level, torch.stack(read), torch.stack(list(scales)), pushes, passes)
        if ended:
            raise DraftDone
