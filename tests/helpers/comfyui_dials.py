"""A dial as a calibration might have found it, as nft_config.json holds it."""

from __future__ import annotations

from typing import Any

RATE = 0.34


def tilt_map(mode: str, slope: float, high: float, scale: float = 1.0, guide: str = "both") -> dict[str, Any]:
    """A map whose most is the rate `high`, at tilt 3."""
    return {
        "mode": mode,
        "guidance_scale": scale,
        "guide": guide,
        "slope": slope,
        "tilts": [-2.0, 0.0, 2.0, 3.0],
        "weights": [-0.4, 0.0, 0.7, 1.3],
        "rates": [0.08, RATE, 0.7, high],
        "errors": [0.01, 0.02, 0.02, 0.01],
        "pictures": 512,
    }


def dial(*maps: dict[str, Any]) -> dict[str, Any]:
    return {
        "judged_by": "reward",
        "judge": "red",
        "prompts": 48,
        "pictures": 512,
        "rate": RATE,
        "rate_error": 0.02,
        "spread": 0.1,
        "steps": 5,
        "slope": 0.6,
        "offsets": [[0.2, 0.3], [0.9, -0.4]],
        "maps": list(maps),
        "note": "Half of the prompts are the trainer's.",
    }
