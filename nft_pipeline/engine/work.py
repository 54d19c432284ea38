"""What a mode works with, and the combination of v_old and v_lora that two modes share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import guidance
from ..errors import GuidanceError
from ..families.family import Family
from ..families.forward_call import as_rows, output_tensors, replace_output
from ..settings import GuidanceSettings
from .denoiser_call import DenoiserCall
from .passes import Passes
from .scales import ScaleFinder
from .terms import Term
from .trace import Trace


@dataclass
class Work:
    """One denoiser while it is guided.

    Args:
        family: of the denoiser.
        terms: the adapters at work.
        settings: cap and the rest.
        scheduler: the pipeline's; names the prediction type where the family does not.
        passes: its forwards, and the LoRAs in them.
        scales: finds s.
        trace: keeps the record.
    """

    family: Family
    terms: Sequence[Term]
    settings: GuidanceSettings
    scheduler: Any
    passes: Passes
    scales: ScaleFinder
    trace: Trace

    def combine(
        self,
        call: DenoiserCall,
        output: Any,
        alphas: Sequence[Tensor | None] | None,
        scales: Sequence[Tensor],
        v_loras: Mapping[int, Sequence[Tensor]],
        passes: int,
    ) -> Any:
        """The guided output of a step, v_old + sum over terms of s (v_lora - v_old); capped and recorded.

        A denoiser with several predictions, as of a video and its sound, has all of them guided, by one s. Cap and
        record go by the first.

        Args:
            call: the forward.
            output: what the denoiser gave; the first `call.rows` rows of its predictions are v_old.
            alphas: of each term, for the record.
            scales: s of each term, (samples,).
            v_loras: by term, of the guided rows, one for each prediction; only terms whose s is not 0 for all samples.
            passes: forwards that were spent.
        """
        v_olds = [prediction[: call.rows] for prediction in output_tensors(output)]
        bases = [v_old[call.guided] for v_old in v_olds]
        of_rows = [scales[k].repeat(call.repeats) for k in v_loras]
        pushes = self._pushes(bases, v_loras, of_rows)
        relative = self._relative_push(call, v_olds[0], pushes[0])
        if self.settings.cap is not None and not call.auxiliary:
            factor = guidance.cap_factor(relative, self.settings.cap)
            scales = self.scales.of_main_call = [scale * factor for scale in scales]
            relative = relative * factor
            of_rows = [scales[k].repeat(call.repeats) for k in v_loras]
            # Anew and not `push * factor`: the two differ in the last bit, and the record says which s was used.
            pushes = self._pushes(bases, v_loras, of_rows)
        self.trace.record(call, alphas, scales, relative, passes)
        guided = [
            guidance.add_push(base, push, of_rows, [of_term[i] for of_term in v_loras.values()])
            for i, (base, push) in enumerate(zip(bases, pushes, strict=True))
        ]
        if call.guided != slice(0, call.rows):
            for i, v_old in enumerate(v_olds):
                alone, guided[i] = guided[i], v_old.clone()
                guided[i][call.guided] = alone
        return replace_output(output, *guided)

    def _pushes(
        self, bases: Sequence[Tensor], v_loras: Mapping[int, Sequence[Tensor]], of_rows: Sequence[Tensor]
    ) -> list[Tensor]:
        """Of each prediction, for the guided rows."""
        return [
            guidance.total_push(base, [of_term[i] for of_term in v_loras.values()], of_rows)
            for i, base in enumerate(bases)
        ]

    def _relative_push(self, call: DenoiserCall, v_old: Tensor, push: Tensor) -> Tensor:
        """How far the samples' predicted pictures move, shape (samples,); `push` is that of the guided rows.

        NaN where a prediction cannot be compared with x_t. Raises GuidanceError for that if a cap is asked for.
        """
        family = self.family
        old, x_t = v_old[call.samples], as_rows(call.inputs[family.state])[call.samples]
        push = push if call.guided == call.samples else push[call.samples]
        if push.ndim != x_t.ndim:
            if self.settings.cap is not None:
                raise GuidanceError(
                    f"nft_cap is {self.settings.cap}, but how far the picture moves is not known: the prediction has "
                    f"shape {tuple(push.shape)} and x_t {tuple(x_t.shape)}. Leave nft_cap out."
                )
            return torch.full_like(call.noise_level, math.nan)
        # Models that see more than x_t (a mask, a picture to edit) or predict more than its velocity (a variance)
        # have more channels after it: the common part is x_t's own.
        common = tuple(slice(0, min(sizes)) for sizes in zip(push.shape, x_t.shape, strict=True))
        prediction = family.output(self.scheduler)
        return guidance.relative_push(push[common], old[common], x_t[common], call.noise_level, prediction, family.sign)
