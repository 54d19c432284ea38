"""The forecast: the chance that a picture which is being drawn will be liked, read off alpha at every step.

    alpha_lambda = e^lambda alpha / (1 - alpha + e^lambda alpha)          (M12)

Under the odds law at tilt lambda this is a martingale: it knows no more on the average at the end than at the start. At
tilt 0 it is alpha itself, so the mean of alpha over a batch must stay flat over the steps: a test of any head that
needs no labels. Torch only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .scale import mended

if TYPE_CHECKING:
    from ..adapters.config import AdapterConfig
    from .measured import TiltMap


def forecast(
    config: AdapterConfig,
    tilt_map: TiltMap | None,
    alpha: Tensor,
    tilt: float | Sequence[float],
    noise_level: Tensor,
) -> Tensor:
    """The chance that each picture will be liked.

    Args:
        config: the adapter's; the offsets of its dial, if it has one, mend alpha first.
        tilt_map: the map it is drawn by, at whose ends the tilt stops; None for a law.
        alpha: as the head read it, any shape, the samples in the last dimension; NaN stays NaN.
        tilt: lambda, for all samples or for each.
        noise_level: t, of a shape that broadcasts with `alpha`.

    Returns:
        Probabilities, of alpha's shape.
    """
    lowest, highest = (-80.0, 80.0) if tilt_map is None else (tilt_map.lowest, tilt_map.highest)
    each = [tilt] if isinstance(tilt, float | int) else tilt
    factor = alpha.new_tensor([math.exp(min(max(one, lowest), highest)) for one in each])
    level = noise_level.expand_as(alpha)
    best = alpha if config.dial is None else mended(config.dial, alpha, level)
    odds = best * factor
    return torch.where(alpha.isnan(), alpha, odds / (1 - best + odds))
