"""The same forwards as in "two_pass" as one of a larger batch, in which each row has its own LoRA scale."""

from __future__ import annotations

from typing import Any

import torch

from ...families.forward_call import call_arguments, output_tensors
from ..denoiser_call import DenoiserCall
from ..work import Work


def before(work: Work, call: DenoiserCall) -> tuple[tuple[()], dict[str, Any]]:
    """The batch becomes [all rows, the guided rows with the first LoRA on, with the second, ...]."""
    size, rows_on = call.guided.stop - call.guided.start, {}
    for i, k in enumerate(call.terms):
        on = rows_on[k] = torch.zeros(call.rows + len(call.terms) * size, device=call.noise_level.device)
        on[call.rows + i * size : call.rows + (i + 1) * size] = 1.0
    work.passes.on_rows(call, rows_on)
    rows = range(call.rows)
    index = [*rows, *list(rows[call.guided]) * len(call.terms)]
    call.forward_rows = len(index)
    return (), call_arguments(work.family.take_rows(call.inputs, index))


def after(work: Work, call: DenoiserCall, output: Any) -> Any:
    """Read alpha from the base rows and combine."""
    alphas, scales = work.scales.after_base_pass(call)
    parts = [prediction[call.rows :].chunk(len(call.terms)) for prediction in output_tensors(output)]
    v_loras = {k: of_term for k, *of_term in zip(call.terms, *parts, strict=True) if bool(scales[k].any())}
    return work.combine(call, output, alphas, scales, v_loras, passes=1)
