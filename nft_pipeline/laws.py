"""Guidance laws: how the tilt and alpha of a sample become its scale s in v_old + s (v_plus - v_old).

To add a law, write its function and its entry of `LAWS` here. The pipeline's argument, the command line, the ComfyUI
nodes and the settings' checks read this table. `import nft_pipeline.laws` does not load torch, because the command line
lists laws in its help; a law's function needs nothing but operators and methods of the Tensors it is given.

`COMBINATIONS` says what several adapters at once mean, in the same way.

Symbols as in `nft_pipeline.guidance`; tilt is lambda.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Of the exponential tilt of a graded reward (dial/exponential.py): kappa where a run does not set it, and the largest
# kappa and tilt; beyond it nearly all pictures count for nothing.
EXPONENT, LARGEST_EXPONENT = 4.0, 8.0


@dataclass(frozen=True)
class Law:
    """One guidance law.

    Args:
        scale: (alpha, tilt) -> s, Tensors of one dtype, float32 or wider, that broadcast. alpha lies in [0, 1]; tilt
            may be anything, NaN and infinities included. s must be 0 where tilt is 0. It raises ValueError for a tilt
            that has no scale under this law.
        formula: of s, in one line.
        help: what is special about it, in half a sentence for a person who has to choose.
        kinds: the kinds of adapter that it takes, "positive" always and perhaps "policy". A policy's alpha is inside
            its weights, so its scale is tilt / tilt_train and the law is not asked; a law that is not linear in the
            tilt cannot take one.
        odds_scale: whether s up to 1 is g / (1 + g) for an odds weight g, as rho alpha is one. The combination "any"
            adds these weights.
    """

    scale: Callable[[Tensor, Tensor], Tensor]
    formula: str
    help: str
    kinds: tuple[str, ...] = ("positive",)
    odds_scale: bool = False


def _nft(alpha: Tensor, tilt: Tensor) -> Tensor:
    if not bool(tilt.isfinite().all()):
        raise ValueError(
            f'tilt must be finite under law="nft", got {_shown(tilt)}. Only law="odds" has a limit at infinity.'
        )
    return tilt * alpha


def _odds(alpha: Tensor, tilt: Tensor) -> Tensor:
    if bool(tilt.isnan().any()):
        raise ValueError(f"tilt is NaN (got {_shown(tilt)}). Pass a number; 0 switches guidance off.")
    # Numerator and denominator are both divided by max(1, exp(tilt)): nothing overflows and nothing cancels.
    s = tilt.sign() * alpha * -(-tilt.abs()).expm1() / odds_weight(alpha, tilt)
    s = s.masked_fill((alpha == 0) | (tilt == 0), 0.0)
    if not bool(s.isfinite().all()):
        raise ValueError(
            f'law="odds" has no finite scale at alpha = {float(alpha.max()):g} with tilt = {_shown(tilt)}: a state '
            "that surely ends well has no disliked side to go to. Use a tilt of -20 or above, or clamp alpha below 1."
        )
    return s


def odds_weight(r: Tensor, tilt: Tensor) -> Tensor:
    """`(1 + rho r) / max(1, e^tilt)`: the odds law's weight of a reward, scaled so that no tilt overflows."""
    return (1 - r) * (-tilt).clamp(max=0).exp() + r * tilt.clamp(max=0).exp()


def _shown(tilt: Tensor) -> str:
    return f"{tilt.item():g}" if tilt.ndim == 0 else str(tilt)


LAWS = {
    "nft": Law(
        _nft,
        formula="s = tilt alpha",
        help="proportional to alpha, the paper's",
        kinds=("positive", "policy"),
    ),
    "odds": Law(
        _odds,
        formula="s = rho alpha / (1 + rho alpha), rho = exp(tilt) - 1",
        help="exact for one adapter, never past what the LoRA alone would draw; needs an adapter with an alpha head",
        odds_scale=True,
    ),
}


@dataclass(frozen=True)
class Combination:
    """What several adapters at once mean.

    Args:
        scales: s of each adapter alone -> s of each in company; Tensors that broadcast.
        help: what it means, in half a sentence for a person who has to choose.
        odds_scale: whether it takes only the scales of laws that have an `odds_scale`, and so no policy adapter.
    """

    scales: Callable[[Sequence[Tensor]], list[Tensor]]
    help: str
    odds_scale: bool = False


def _any(scales: Sequence[Tensor]) -> list[Tensor]:
    if len(scales) > 1 and bool((sum((s < 0).int() for s in scales[1:]) + (scales[0] < 0).int() > 1).any()):
        raise ValueError(
            f'the combination "any" got {len(scales)} scales of which more than one is negative for the same sample. '
            "Weights of several negative tilts can add up to less than nothing, which no picture has: keep at most one "
            'negative tilt, or use "all", which avoids each of several things.'
        )
    # What a scale has above 1 lies past its LoRA and is no share of a mixture: it is put back as it is. Below 1e-7 of
    # v_old two weights are both infinite in float32; they then count alike.
    within = [s.clamp(max=1) for s in scales]
    left = [(1 - s).clamp(min=1e-7) for s in within]
    weights = [s / u for s, u in zip(within, left, strict=True)]
    combined = []
    for k, (scale, s, u) in enumerate(zip(scales, within, left, strict=True)):
        others = sum(weights[:k] + weights[k + 1 :])
        # g / (1 + g + others) with g = s / u. The denominator is s at least, 0 only where s is.
        combined.append(s / (1 + u * others).clamp(min=1e-12) + (scale - s))
    return combined


COMBINATIONS = {
    "all": Combination(list, help="the pushes are added, which is the product of the rewards only to first order"),
    "any": Combination(
        _any, help="pictures that at least one of the rewards likes, exact under the odds law", odds_scale=True
    ),
}


def combinations_explained() -> str:
    """All combinations in a line each, for a help text."""
    return " ".join(f"{name}: {combination.help}." for name, combination in COMBINATIONS.items())


def laws_explained() -> str:
    """All laws in a line each, for a help text: "nft: proportional to alpha, the paper's. odds: ..."."""
    return " ".join(f"{name}: {law.help}." for name, law in LAWS.items())
