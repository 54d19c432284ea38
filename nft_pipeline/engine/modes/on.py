"""A policy adapter at strength 1: the guided output is v_lora itself, so one forward with the LoRA on does."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..denoiser_call import DenoiserCall
from ..work import Work


def before(work: Work, call: DenoiserCall) -> None:
    """The one term's LoRA on."""
    work.passes.on(call, work.terms[call.terms[0]])


def after(work: Work, call: DenoiserCall, output: Any) -> None:
    """Record s = 1; the push is not known, because v_old was not computed. The output stands as it is."""
    scales = work.scales.of_all_terms(call, [torch.ones_like(call.noise_level)])
    work.trace.record(call, None, scales, math.nan, passes=1)
