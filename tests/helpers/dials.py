"""Dials as a calibration would leave them, for tests of what is said of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nft_pipeline.dial.measured import Dial, TiltMap

ONE_PASS = TiltMap(
    mode="single",
    guidance_scale=1.0,
    guide="both",
    slope=0.0,
    tilts=(-2.0, 0.0, 2.0, 5.0),
    weights=(-0.5, 0.0, 0.5, 1.4),
    rates=(0.1, 0.3, 0.7, 0.92),
    errors=(0.01, 0.01, 0.02, 0.01),
    pictures=400,
)
TWO_PASSES = replace(ONE_PASS, mode="two_pass", slope=0.6)
AT_SCALE_3 = replace(ONE_PASS, guidance_scale=3.0, rates=(0.15, 0.4, 0.8, 0.95))


def measured_dial(**changed: Any) -> Dial:
    """A dial with maps of both modes, and of guidance scale 3 for one pass; at tilt 2, which is strength 1 of the tiny
    adapters, it promises 70 %."""
    values: dict[str, Any] = {
        "judged_by": "reward",
        "judge": "red",
        "prompts": 48,
        "pictures": 300,
        "rate": 0.3,
        "rate_error": 0.012,
        "spread": 0.1,
        "steps": 3,
        "slope": 0.6,
        "offsets": ((0.1, 0.0), (0.9, 0.1)),
        "maps": (ONE_PASS, TWO_PASSES, AT_SCALE_3),
    }
    return Dial(**{**values, **changed})


def further_dial() -> Dial:
    """Two passes go on where one ends, at tilt 5 and 92 %; to 97 % at tilt 8."""
    further = replace(TWO_PASSES, slope=0.0, tilts=(-2.0, 0.0, 2.0, 8.0), rates=(0.1, 0.3, 0.7, 0.97))
    return measured_dial(maps=(replace(ONE_PASS, goes_on=True), further))


def unlearned_dial() -> Dial:
    """Nothing raises the share of liked pictures."""
    flat = replace(ONE_PASS, tilts=(0.0, 0.1), weights=(0.0, 1.0), rates=(0.3, 0.31), errors=(0.01, 0.02))
    note = "not learnable from this: no weight surely raises the share of liked pictures above 30% (at most 31% ± 2%)"
    return measured_dial(maps=(flat,), note=note)
