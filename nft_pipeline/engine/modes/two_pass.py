"""Two passes, one after the other: the pipeline's own forward gives v_old, one more for each adapter gives v_lora."""

from __future__ import annotations

from typing import Any

from ..denoiser_call import DenoiserCall
from ..work import Work


def before(work: Work, call: DenoiserCall) -> None:
    """Nothing: the forward is the base pass."""


def after(work: Work, call: DenoiserCall, output: Any) -> Any:
    """Read alpha, run the forwards with a LoRA on where s is not 0 for all samples, combine."""
    alphas, scales = work.scales.after_base_pass(call)
    at_work = [] if work.trace.ends_with(call) else [k for k in call.terms if bool(scales[k].any())]
    if not at_work:
        work.trace.record(call, alphas, scales, 0.0, passes=1)
        return None
    v_loras = {k: work.passes.lora_pass(call, work.terms[k]) for k in at_work}
    return work.combine(call, output, alphas, scales, v_loras, passes=1 + len(at_work))
