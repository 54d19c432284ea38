"""One forward whose LoRA scale is s itself, from the alpha of the step before: an approximation at the stock cost."""

from __future__ import annotations

import math
from typing import Any

from ..denoiser_call import DenoiserCall
from ..work import Work


def before(work: Work, call: DenoiserCall) -> None:
    """Each LoRA at s on the guided rows, off on the others."""
    scales = work.scales.of_main_call = work.scales.before_pass(call)
    rows_on = {}
    for k in call.terms:
        rows_on[k] = scales[k].new_zeros(call.rows)
        rows_on[k][call.guided] = scales[k].repeat(call.repeats)
    work.passes.on_rows(call, rows_on)


def after(work: Work, call: DenoiserCall, output: Any) -> None:
    """Read alpha for the next step; the output stands as it is. The push is not known, v_old was not computed."""
    scales = work.scales.of_main_call or []
    work.trace.record(call, work.scales.keep_alphas(call, scales), scales, math.nan, passes=1)
