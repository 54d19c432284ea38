"""The exponential tilt of a graded reward, drawn by adapters that were trained on different functions of it (M15).

    wanted     p_old(x_0) e^{lambda r},   r in [0, 1]
    drawn      p_old(x_0) (w_0 + sum_k w_k b_k(r)),   b_k(r) = r, or e^{kappa_k (r - 1)}

Under the odds law with the combination "any" each adapter's weight is rho_k = e^{tilt_k} - 1 = w_k / w_0, so the only
question is which tilts come nearest to e^{lambda r}. One adapter for r itself and one for e^{4 (r - 1)} miss it by less
than 5 % at every lambda from 0 to 4, and one for r alone by 68 % at 4. The odds law of 0/1 rewards needs none of this:
there it is the exponential tilt. numpy only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import is_number
from ..errors import GuidanceError
from ..laws import EXPONENT, LARGEST_EXPONENT

if TYPE_CHECKING:
    from ..adapters.config import AdapterConfig

WORST = 0.1  # the largest relative error of a weight that is still called the exponential tilt
_MOST = 6  # adapters at once
_GRID, _ROUNDS = 101, 60
_BASE = 1e-3  # least w_0, as a share of the weight that is wanted at r = 0: at lambda = kappa the best w_0 is 0
_PLAIN = ("raw", "likes")  # optimalities whose r is the score itself


def exponential_tilts(exponents: Iterable[float | None], tilt: float) -> tuple[list[float], float]:
    """The tilts of adapters that together draw an exponential tilt, under the odds law with the combination "any".

    Args:
        exponents: kappa of each adapter, at most 6, which was trained on e^{kappa (r - 1)}, above 0 and at most 8; None
            for one trained on r itself.
        tilt: lambda, from -8 to 8.

    Returns:
        A tilt for each adapter, and the largest relative error of the weight over r in [0, 1].

    Raises:
        GuidanceError: no adapters, a value out of range, or no tilts of these adapters come within `WORST`.
    """
    given: list[Any] = list(exponents)
    known = [kappa for kappa in given if kappa is not None]
    if not 1 <= len(given) <= _MOST or not all(is_number(kappa) and 0 < kappa <= LARGEST_EXPONENT for kappa in known):
        raise GuidanceError(
            f"exponents are {given!r}, expected one for each of 1 to {_MOST} adapters: a number above 0 and at most "
            f"{LARGEST_EXPONENT:g} that it was trained with, or None for one that was trained on the reward itself."
        )
    if not is_number(tilt) or not abs(tilt) <= LARGEST_EXPONENT:
        raise GuidanceError(
            f"tilt is {tilt!r}, expected a number from -{LARGEST_EXPONENT:g} to {LARGEST_EXPONENT:g}: 0 is the base "
            "model."
        )
    wanted = float(tilt)
    if wanted == 0:
        return [0.0] * len(given), 0.0
    r = np.linspace(0, 1, _GRID)
    columns = [np.ones_like(r), *(r if kappa is None else np.exp(float(kappa) * (r - 1)) for kappa in given)]
    weights, error = _drawable(np.stack(columns, 1) / np.exp(wanted * (r - 1))[:, None])
    if error > WORST:
        shown = ", ".join("the reward itself" if kappa is None else f"exponent {kappa:g}" for kappa in given)
        raise GuidanceError(
            f"adapters trained on {shown} do not draw the exponential tilt {wanted:g}: the nearest weight that was "
            f"found is wrong by up to {error:.0%}, expected at most {WORST:.0%}. Ask for a tilt nearer to 0 or to an "
            "exponent, or train one more adapter with optimality: exponential and an exponent near the tilt."
        )
    return np.log1p(weights[1:] / weights[0]).tolist(), error


def exponential_strengths(configs: Mapping[str, AdapterConfig], tilt: float) -> dict[str, float]:
    """Strengths that draw p_old e^{tilt r} with adapters trained on one graded reward, for

        pipe(prompt, nft_strength=exponential_strengths(configs, 2.5), nft_law="odds", nft_combine="any")

    Args:
        configs: of the loaded adapters, by name: positive ones, trained on the same reward with `optimality:
            exponential` or on the reward itself, `raw`.
        tilt: lambda. One adapter with `raw` and one with exponent 4 draw all from -1 to 4.

    Raises:
        GuidanceError: an adapter of another kind or optimality, or of another reward than the others; or as
            `exponential_tilts`.
    """
    rewards = {name: _reward(config) for name, config in configs.items()}
    if len(set(rewards.values())) > 1:
        shown = ", ".join(f"{name!r} on {reward[0]!r}" for name, reward in rewards.items())
        raise GuidanceError(
            f"the adapters were trained on different rewards ({shown}), and no weights of these add up to the "
            "exponential tilt of one. Load those of one reward, with the same weights and mix if it is made of several."
        )
    tilts, _ = exponential_tilts([_exponent(name, config) for name, config in configs.items()], tilt)
    return {name: one / config.tilt for (name, config), one in zip(configs.items(), tilts, strict=True)}


def _settings(config: AdapterConfig) -> Mapping[str, Any]:
    """Those of the run, as far as the adapter knows them."""
    settings = config.training.get("settings")
    return settings if isinstance(settings, Mapping) else {}


def _reward(config: AdapterConfig) -> tuple[str, str]:
    """What tells one reward from another."""
    settings = _settings(config)
    return str(config.reward.get("name")), repr([settings.get(name) for name in ("rewards", "mix")])


def _exponent(name: str, config: AdapterConfig) -> float | None:
    """What an adapter was trained on: kappa, or None for the reward itself."""
    settings = _settings(config)
    method, at = settings.get("optimality"), settings.get("optimality_at")
    if config.kind == "positive" and method == "exponential" and (at is None or is_number(at)):
        return EXPONENT if at is None else float(at)
    if config.kind == "positive" and method in _PLAIN:
        return None
    raise GuidanceError(
        f"the adapter {name!r} is {config.kind} with optimality {method!r}, expected a positive one that was trained "
        f"with optimality exponential or {' or '.join(_PLAIN)}: only of these is it known which weight they draw."
    )


def _drawable(relative: np.ndarray) -> tuple[np.ndarray, float]:
    """The best weights (k,) that the combination can draw, and their largest error: some of the base model, however
    little, and each adapter's odds above none, those of one at most below 1. Each choice of adapters is tried."""
    adapters = range(1, relative.shape[1])
    best, least = np.zeros(relative.shape[1]), math.inf
    for count in range(len(adapters), 0, -1):
        for used in itertools.combinations(adapters, count):
            weights, columns = np.zeros(relative.shape[1]), [0, *used]
            weights[columns] = _minimax(relative[:, columns])
            # Odds are ratios to w_0, so there has to be one. `relative` is in units of the weight that is wanted.
            weights[0] = max(weights[0], _BASE / relative[0, 0])
            off = float(np.abs(relative @ weights - 1).max())
            if off < least and (weights[1:] > -weights[0]).all() and (weights[1:] < 0).sum() <= 1:
                best, least = weights, off
    return best, least


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
