"""The exponential tilt of a graded reward, drawn by adapters that were trained on different functions of it (M15).

    wanted     p_old(x_0) e^{lambda r},   r in [0, 1]
    drawn      p_old(x_0) (w_0 + sum_k w_k b_k(r)),   b_k(r) = r, or e^{kappa_k (r - 1)}

Under the odds law with the combination "any" each adapter's weight is rho_k = e^{tilt_k} - 1 = w_k / w_0, so the only
question is which tilts come nearest to e^{lambda r}. One adapter for r itself and one for e^{4 (r - 1)} miss it by at
most 4 % at every lambda from 0 to 4, and one for r alone by 68 % at 4. The odds law of 0/1 rewards needs none of this:
there it is the exponential tilt. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..checks import is_number
from ..errors import GuidanceError

if TYPE_CHECKING:
    from ..adapters.config import AdapterConfig

EXPONENT = 4.0  # kappa where a training run does not set it
LARGEST_EXPONENT = 100.0  # and the largest tilt
WORST = 0.1  # the largest relative error of a weight that is still called the exponential tilt
_GRID, _ROUNDS = 101, 60
_LEAST = 1e-5  # of w_0, as a share of the largest weight there is: at lambda = kappa it would be none
_PLAIN = ("raw", "likes", "threshold")  # optimalities whose r is the score itself


def exponential_tilts(exponents: Sequence[float | None], tilt: float) -> tuple[list[float], float]:
    """The tilts of adapters that together draw an exponential tilt, under the odds law with the combination "any".

    Args:
        exponents: kappa of each adapter, which was trained on e^{kappa (r - 1)}; None for one trained on r itself.
        tilt: lambda, of either sign.

    Returns:
        A tilt for each adapter, and the largest relative error of the weight over r in [0, 1].

    Raises:
        GuidanceError: no adapters, a value out of range, or no tilts of these adapters come within `WORST`.
    """
    known = [kappa for kappa in exponents if kappa is not None]
    if not exponents or not all(is_number(kappa) and 0 < kappa <= LARGEST_EXPONENT for kappa in known):
        raise GuidanceError(
            f"exponents are {list(exponents)!r}, expected one for each adapter, at least one: a number above 0 that "
            "the adapter was trained with, or None for one that was trained on the reward itself."
        )
    if not is_number(tilt) or not abs(tilt) <= LARGEST_EXPONENT:
        raise GuidanceError(
            f"tilt is {tilt!r}, expected a number from -{LARGEST_EXPONENT:g} to {LARGEST_EXPONENT:g}: 0 is the base "
            "model."
        )
    if tilt == 0:
        return [0.0] * len(exponents), 0.0
    r = np.linspace(0, 1, _GRID)
    columns = [np.ones_like(r), *(r if kappa is None else np.exp(kappa * (r - 1)) for kappa in exponents)]
    relative = np.stack(columns, 1) / np.exp(tilt * (r - 1))[:, None]
    weights = _drawable(relative)
    error = float(np.abs(relative @ weights - 1).max())
    if error > WORST:
        shown = ", ".join("the reward itself" if kappa is None else f"exponent {kappa:g}" for kappa in exponents)
        raise GuidanceError(
            f"adapters trained on {shown} do not draw the exponential tilt {tilt:g}: the nearest they come is a weight "
            f"that is wrong by up to {error:.0%}, expected at most {WORST:.0%}. Ask for a tilt between 0 and the "
            "largest exponent, or train one more adapter with optimality: exponential."
        )
    return np.log(weights[1:] / weights[0] + 1).tolist(), error


def exponential_strengths(configs: Mapping[str, AdapterConfig], tilt: float) -> dict[str, float]:
    """Strengths that draw p_old e^{tilt r} with adapters trained on one graded reward, for

        pipe(prompt, nft_strength=exponential_strengths(configs, 2.5), nft_law="odds", nft_combine="any")

    Args:
        configs: of the loaded adapters, by name: positive ones, trained with `optimality: exponential` or on the reward
            itself.
        tilt: lambda; up to the largest exponent.

    Raises:
        GuidanceError: an adapter of another kind or optimality; or as `exponential_tilts`.
    """
    tilts, _ = exponential_tilts([_exponent(name, config) for name, config in configs.items()], tilt)
    return {name: one / config.tilt for (name, config), one in zip(configs.items(), tilts, strict=True)}


def _exponent(name: str, config: AdapterConfig) -> float | None:
    """What an adapter was trained on: kappa, or None for the reward itself."""
    settings = config.training.get("settings")
    known = settings if isinstance(settings, Mapping) else {}
    method, at = known.get("optimality"), known.get("optimality_at")
    if config.kind == "positive" and method == "exponential":
        return float(at) if is_number(at) else EXPONENT
    if config.kind == "positive" and method in _PLAIN:
        return None
    raise GuidanceError(
        f"the adapter {name!r} is {config.kind} with optimality {method!r}, expected a positive one that was trained "
        f"with optimality exponential or {', '.join(_PLAIN)}: only of these is it known which weight they draw."
    )


def _drawable(relative: np.ndarray) -> np.ndarray:
    """The best weights (k,) that the combination can draw: some of the base model, however little, and each adapter's
    odds above none, those of one at most below 1. Adapters that ask for more are left out, one by one."""
    used = list(range(relative.shape[1]))
    while True:
        weights = np.zeros(relative.shape[1])
        weights[used] = _minimax(relative[:, used])
        weights[0] = max(weights[0], _LEAST * np.abs(weights).max())
        if (weights[1:] > -weights[0]).all() and (weights[1:] < 0).sum() <= 1:
            return weights
        used.remove(int(weights[1:].argmin()) + 1)


def _minimax(relative: np.ndarray) -> np.ndarray:
    """Weights (k,) with the smallest largest |relative @ weights - 1|, the first of them not below 0 (Lawson's
    iteration: least squares in which the worst places count for more each time)."""
    best, smallest = np.zeros(relative.shape[1]), math.inf
    importance = np.full(len(relative), 1 / len(relative))
    for _ in range(_ROUNDS):
        scaled = relative * np.sqrt(importance)[:, None]
        weights = np.linalg.lstsq(scaled, np.sqrt(importance), rcond=None)[0]
        if weights[0] < 0:
            weights = np.append(0.0, np.linalg.lstsq(scaled[:, 1:], np.sqrt(importance), rcond=None)[0])
        off = np.abs(relative @ weights - 1)
        if off.max() < smallest:
            best, smallest = weights, float(off.max())
        importance = importance * off + 1e-300
        importance /= importance.sum()
    return best
