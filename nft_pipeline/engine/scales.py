"""The scale s of each term in a step: found after the base pass from its alpha, or before it from the step before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import guidance
from ..families.family import Family
from ..settings import GuidanceSettings
from .denoiser_call import DenoiserCall
from .terms import Term, alpha_before
from .trace import Trace


class ScaleFinder:
    """Finds the scales of the calls of one denoiser.

    Args:
        family: of the denoiser.
        terms: the adapters at work.
        settings: names the law, and what several adapters at once mean.
        trace: holds the alphas of the step before.
    """

    def __init__(self, family: Family, terms: Sequence[Term], settings: GuidanceSettings, trace: Trace) -> None:
        self._family, self._terms, self._settings, self._trace = family, terms, settings, trace
        self.of_main_call: list[Tensor] | None = None  # of the step's main call, for its auxiliary ones

    def after_base_pass(self, call: DenoiserCall) -> tuple[list[Tensor | None] | None, list[Tensor]]:
        """alpha (None where no head was asked) and s of every term, each of shape (samples,), after the forward."""
        if call.auxiliary and self.of_main_call is not None:
            return None, self.of_main_call
        alphas = {k: self._alpha(call, self._terms[k]) for k in call.terms if self._terms[k].needs_alpha}
        scales = [
            self._terms[k].scale(alphas.get(k), call.factor, call.noise_level, self._settings) for k in call.terms
        ]
        of_all = self.of_all_terms(call, guidance.combined_scales(scales, self._settings.combine))
        if not call.auxiliary:
            self.of_main_call = of_all
        return [alphas.get(k) for k in range(len(self._terms))], of_all

    def before_pass(self, call: DenoiserCall) -> list[Tensor]:
        """s of every term, each of shape (samples,), before the forward: from the alpha of the step before."""
        if call.auxiliary and self.of_main_call is not None:
            return self.of_main_call
        scales = []
        for term in (self._terms[k] for k in call.terms):
            alpha = None
            if term.needs_alpha:
                alpha = alpha_before(term.adapter.config, self._trace.alphas.get(term.name), call.noise_level)
            scales.append(term.scale(alpha, call.factor, call.noise_level, self._settings))
        return self.of_all_terms(call, guidance.combined_scales(scales, self._settings.combine))

    def keep_alphas(self, call: DenoiserCall, scales: Sequence[Tensor] | None = None) -> list[Tensor | None]:
        """What the heads read in the forward that has run, with the LoRAs at these scales or off; kept for the next
        step."""
        alphas: list[Tensor | None] = [None] * len(self._terms)
        for k in call.terms:
            term = self._terms[k]
            if term.needs_alpha and not call.auxiliary:
                lora_scale = None if scales is None else scales[k]
                alphas[k] = self._trace.alphas[term.name] = self._alpha(call, term, lora_scale)
        return alphas

    def of_all_terms(self, call: DenoiserCall, scales: Sequence[Tensor]) -> list[Tensor]:
        """The scales of the terms at work, in their order, with zeros for the other terms."""
        by_term = dict(zip(call.terms, scales, strict=True))
        return [by_term.get(k, torch.zeros_like(call.noise_level)) for k in range(len(self._terms))]

    def _alpha(self, call: DenoiserCall, term: Term, lora_scale: Tensor | None = None) -> Tensor:
        text = self._family.read_text(call.inputs)
        if text is not None:  # one prompt for all samples may come as one row, which the denoiser broadcasts
            text = text.expand(call.rows, -1, -1)[call.samples] if text.shape[0] == 1 else text[call.samples]
        return term.alpha(call.noise_level, call.forward_rows or call.rows, call.samples, text, lora_scale)
