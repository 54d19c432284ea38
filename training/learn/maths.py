"""The maths of training: anchors, rounds, and what a LoRA regresses on. Torch and nothing else, no model inside.

    M5   DiffusionNFT's two-branch loss is a regression           `nft_loss`
    M6   the regression's target has the mean v_old + tilt Delta  `regression_target`
    M7   an anchor draws the optimum towards v_ref                `anchor_kappa`, `anchor_weight`, `anchored_target`
    M8   the tilts of online rounds add up                        `accumulated_tilt`

`paper_loss` is the loss as DiffusionNFT's authors train it. Symbols as in `nft_pipeline.guidance`; each statement of
docs/theory.md is checked against exact sums in tests/maths.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nft_pipeline.tensors import finite, in_unit, per_sample, positive, same_shape, unit_per_sample, work_dtype


def anchor_kappa(eta0: float, eta1: float) -> float:
    """Weight `kappa = eta1 / eta0` of the pull to v_ref in `||v - target||^2 + kappa ||v - v_ref||^2` (M7).

    Args:
        eta0: the tilt the anchored training converges to (M8), > 0; infinity means no anchor (kappa = 0).
        eta1: the tilt added each round, 2 / beta, > 0 and finite.

    Raises:
        ValueError: either is out of range.
    """
    return positive("eta1", eta1, "2 / beta, the tilt added each round") / _eta0(eta0)


def anchor_weight(eta0: float, eta1: float) -> float:
    """Weight `w = eta0 / (eta0 + eta1) = 1 / (1 + kappa)` of the target in the anchored optimum (M7).

    Args and Raises: those of `anchor_kappa`.
    """
    return 1.0 / (1.0 + anchor_kappa(eta0, eta1))


def accumulated_tilt(eta1: float, rounds: int, eta0: float | None = None) -> float:
    """Tilt L_K reached after K online rounds, from `L_0 = 0, L_{k+1} = w (L_k + eta1)` (M8).

    No anchor: `K eta1`, without bound. Anchored: `eta0 (1 - w^K)`, which tends to eta0 whatever eta1 is.

    Args:
        eta1: tilt added each round, 2 / beta, > 0.
        rounds: K >= 0.
        eta0: limit set by the anchor, > 0; None or infinity for no anchor.

    Raises:
        ValueError: eta1 or eta0 out of range, or rounds negative or no integer.
    """
    step = positive("eta1", eta1, "2 / beta, the tilt added each round")
    if not isinstance(rounds, int) or rounds < 0:
        raise ValueError(f"rounds must be a whole number, 0 or more, got {rounds!r}. It counts finished rounds.")
    if eta0 is None or math.isinf(_eta0(eta0)):
        return rounds * step
    return -eta0 * math.expm1(-rounds * math.log1p(step / eta0))


def regression_target(
    v_old: Tensor, y: Tensor, r: Tensor, tilt: float | Tensor, baseline: float | Tensor, refit: float = 0.0
) -> Tensor:
    """Target `v_old + (tilt (r - b) + refit)(y - v_old)` whose conditional mean is v_old + tilt Delta (M6).

    b = 1/2 is DiffusionNFT's loss (M5). b = alpha(x_t) is unbiased if EITHER v_old = E[y | x_t] OR alpha is exact, and
    varies far less at low noise.

    Without refit and with b = alpha, an error of v_old is neither noticed nor corrected: v_old - E[y | x_t] is in the
    mean of the target as it is, and over the rounds such errors add up. refit corrects that share of it: the mean is

        v_old + tilt Delta + refit (E[y | x_t] - v_old)

    This is the same mean if v_old is right, and with refit 1 it does not depend on v_old.

    Args:
        v_old, y: old model's velocity and eps - x_0, both (B, ...).
        r: rewards in [0, 1], (B,).
        tilt: 2 / beta, finite; or a Tensor of (B,), one tilt per sample, whose values are not checked.
        baseline: b, a number or (B,), in [0, 1].
        refit: in [0, 1].

    Returns:
        The target, float32 or wider; v_old carries no gradient.

    Raises:
        ValueError: shapes that do not fit, r, baseline or refit outside [0, 1], tilt not finite.
    """
    same_shape(v_old=v_old, y=y)
    work = work_dtype(v_old, y)
    old = v_old.detach().to(work)
    lam = per_sample("tilt", tilt if isinstance(tilt, Tensor) else finite("tilt", tilt, "2 / beta"), old, work)
    r_, b_ = (unit_per_sample(name, value, old) for name, value in (("r", r), ("baseline", baseline)))
    in_unit("refit", torch.tensor(float(refit)), "0 leaves v_old's own error where it is, 1 takes it out")
    return old + (lam * (r_ - b_) + refit) * (y.to(work) - old)


def anchored_target(target: Tensor, v_ref: Tensor, weight: float) -> Tensor:
    """Optimum `w target + (1 - w) v_ref` of the anchored step (M7), w = `anchor_weight(eta0, eta1)` in [0, 1].

    Raises:
        ValueError: shapes differ, or weight outside [0, 1].
    """
    same_shape(target=target, v_ref=v_ref)
    in_unit("weight", torch.tensor(float(weight)), "use anchor_weight(eta0, eta1); 1 means no anchor")
    return weight * target + (1.0 - weight) * v_ref


def nft_loss(v_theta: Tensor, v_old: Tensor, y: Tensor, r: Tensor, beta: float) -> Tensor:
    """DiffusionNFT's two-branch loss in velocity space, the left side of Lemma M5:

        r ||v^+ - y||^2 + (1 - r) ||v^- - y||^2,   v^+- = v_old +- beta (v_theta - v_old)

    and equal, up to a constant and the factor beta^2, to regression on `regression_target(..., 2 / beta, 1 / 2)`.

    Args:
        v_theta, v_old, y: trained velocity, old velocity (no gradient flows into it), eps - x_0; all (B, ...).
        r: rewards in [0, 1], (B,).
        beta: > 0.

    Returns:
        Loss per sample, (B,): the mean over the other dimensions, float32 or wider.

    Raises:
        ValueError: shapes that do not fit, r outside [0, 1], beta not finite and positive.
    """
    same_shape(v_theta=v_theta, v_old=v_old, y=y)
    beta, work = positive("beta", beta, "2 / beta is the tilt"), work_dtype(v_theta, v_old, y)
    v, old, y = v_theta.to(work), v_old.detach().to(work), y.to(work)
    liked = unit_per_sample("r", r, v)
    loss = liked * (old + beta * (v - old) - y) ** 2 + (1 - liked) * (old - beta * (v - old) - y) ** 2
    return _sample_mean(loss)


def paper_loss(
    v_theta: Tensor,
    v_old: Tensor,
    x_t: Tensor,
    x_0: Tensor,
    t: Tensor,
    r: Tensor,
    beta: float,
    adv_clip_max: float = 5.0,
    weight_floor: float = 1e-5,
) -> Tensor:
    """DiffusionNFT's loss as its authors train it (arXiv:2509.16117): in x_0 space, each branch self-normalised.

        adv_clip_max (r L^+ / beta + (1 - r) L^- / beta),   L^+- = mean((x0hat^+- - x_0)^2) / m^+-
        x0hat^+- = x_t - t v^+-,   m^+- = max(mean|x0hat^+- - x_0|, weight_floor) without gradient
        v^+ = beta v_theta + (1 - beta) v_old,   v^- = (1 + beta) v_old - beta v_theta

    Their trainer adds 0.0001 ||v_theta - v_base||^2 to it, which `nft_pipeline.training` has as a setting.

    With equal m the optimum is M4's, exactly. m is nearly equal where many pictures could have given x_t in many
    dimensions; where few could, the optimum keeps its direction and misses its size (docs/theory.md has numbers).

    Args:
        v_theta, v_old: trained and old velocity (no gradient flows into the latter), (B, ...).
        x_t, x_0: noisy and clean sample, same shape.
        t: noise level in [0, 1], (B,) or ().
        r: rewards in [0, 1], (B,); the authors use 0.5 + A / (2 adv_clip_max), A the clipped advantage.
        beta: > 0; the authors use 1.0 and 0.1.
        adv_clip_max: their clip of the advantage, > 0. Only a constant factor here.
        weight_floor: smallest m, > 0.

    Returns:
        Loss per sample, (B,), float32 or wider.

    Raises:
        ValueError: shapes that do not fit, r or t outside [0, 1], another argument not finite and positive.
    """
    same_shape(v_theta=v_theta, v_old=v_old, x_t=x_t, x_0=x_0)
    beta = positive("beta", beta, "2 / beta is the tilt")
    factor = positive("adv_clip_max", adv_clip_max, "the authors use 5")
    floor = positive("weight_floor", weight_floor, "the authors use 1e-5")
    work = work_dtype(v_theta, v_old, x_t, x_0)
    v, old, x_t, x_0 = v_theta.to(work), v_old.detach().to(work), x_t.to(work), x_0.to(work)
    noise, liked = unit_per_sample("t", t, v), unit_per_sample("r", r, v).flatten()

    def branch(velocity: Tensor) -> Tensor:
        error = x_t - noise * velocity - x_0
        return _sample_mean(error**2) / _sample_mean(error.detach().abs()).clamp(min=floor)

    plus = branch(beta * v + (1 - beta) * old)
    minus = branch((1 + beta) * old - beta * v)
    return factor * (liked * plus + (1 - liked) * minus) / beta


def _sample_mean(x: Tensor) -> Tensor:
    """Mean over everything but the batch: (B, ...) -> (B,)."""
    return x.reshape(x.shape[0], -1).mean(dim=1)


def _eta0(eta0: float) -> float:
    if not eta0 > 0:
        raise ValueError(f"eta0 must be above 0, got {eta0}: it is the tilt that anchored training converges to.")
    return float(eta0)
