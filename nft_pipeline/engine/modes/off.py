"""A step that is not guided: the pipeline's own forward gives v_old, and nothing is added."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ...modes import MODES
from ..denoiser_call import DenoiserCall
from ..work import Work


def before(work: Work, call: DenoiserCall) -> None:
    """Nothing."""


def after(work: Work, call: DenoiserCall, output: Any) -> None:
    """Record a step without guidance; the module's own output stands, bit for bit."""
    if work.trace.watch and not call.terms:  # no adapter is at work, so all of them are watched
        call = replace(call, terms=[k for k, term in enumerate(work.terms) if term.needs_alpha])
    read = work.trace.watch or MODES[work.settings.mode].one_pass
    alphas = work.scales.keep_alphas(call) if read else None
    scales = work.scales.of_all_terms(call, [torch.zeros_like(call.noise_level)] * len(call.terms))
    work.trace.record(call, alphas, scales, 0.0, passes=1)
