"""Every pipeline that can be built tiny: the same comes out in one pass or two, alone or in company."""

from __future__ import annotations

import re

import pytest

from helpers.properties import measured
from helpers.zoo import CASES, GENERIC, SIBLINGS, Case

ALL = {**CASES, **SIBLINGS, **GENERIC}
# Stable Video Diffusion's sigmas of 700 enlarge rounding; Kandinsky rounds queries and keys to bf16.
WIDER = {"StableVideoDiffusionPipeline": 2e-3, "Kandinsky5T2IPipeline": 1e-3}
FOLDED = "Krea2Pipeline"  # in the layers that fuse its text
# What is refused, by property, and how it is said.
REFUSED = {
    "batched": "folds the batch into another dimension",
    "neighbours": "folds the batch into another dimension|which rows are the conditional ones",
}


@pytest.mark.parametrize("name", ALL)
def test_the_same_comes_out(name: str) -> None:
    case: Case = ALL[name]
    for (what, cfg), error in measured(case).items():
        if isinstance(error, str):
            assert (name in GENERIC or name == FOLDED) and re.search(REFUSED[what], error), (what, cfg, error)
        else:
            assert error < WIDER.get(name, 2e-5), (what, cfg, error)
