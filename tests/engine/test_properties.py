"""Every pipeline that can be built tiny: one pass or two, one forward or two, alone or in company, the same comes out."""

from __future__ import annotations

import pytest

from helpers.properties import measured
from helpers.zoo import CASES, GENERIC, Case

ALL = {**CASES, **GENERIC}
# Mochi's and HunyuanVideo's text refiners, and Stable Video Diffusion's sigmas of 700, enlarge rounding.
WIDER = {"StableVideoDiffusionPipeline": 2e-3, "Kandinsky5T2IPipeline": 1e-3}


@pytest.mark.parametrize("cfg", [False, True], ids=["cfg_free", "cfg"])
@pytest.mark.parametrize("name", ALL)
def test_the_same_comes_out(name: str, cfg: bool) -> None:
    case: Case = ALL[name]
    if cfg and not case.cfg([0]):
        return
    for what, error in measured(case, cfg=cfg).items():
        if isinstance(error, str):
            assert what == "batched" and "folds the batch into another dimension" in error
        else:
            assert error < WIDER.get(name, 2e-5), (what, error)
