"""The maths of reward guidance. Torch and nothing else; every other module calls these few lines.

    v = v_old + s (v_plus - v_old)        nft law (the default):  s = tilt * alpha(x_t, c, t),  tilt = 2 / beta
                                          odds law (exact):       s = rho alpha / (1 + rho alpha),  rho = exp(tilt) - 1

Symbols, here and everywhere in this package:

    t        noise level in [0, 1]; x_t = (1 - t) x_0 + t eps, so t = 0 is the picture and t = 1 is noise
    y        eps - x_0, the velocity target
    r        reward in [0, 1], read as p(o = 1 | x_0, c): the probability that the picture is liked
    v_old    E[y | x_t], the base model's velocity
    alpha    E[r | x_t], the probability that this noisy state ends in a liked picture
    v_plus   E[r y | x_t] / E[r | x_t], the velocity of the pictures weighted by r
    Delta    alpha (v_plus - v_old) = Cov(r, y | x_t) = -(t / (1 - t)) grad alpha
    beta     DiffusionNFT's inverse strength; tilt (lambda) = 2 / beta is the strength in natural units:
             tilt = ln 3 multiplies the odds of a liked picture by three

The same formulas hold for models that predict noise, x_0 or VP velocity: at one (x_t, t) each of these is the same
affine map of any other in both branches, so the RAW outputs can be combined. `M1` to `M10` and `M14` below are
statements of docs/theory.md, each checked against exact sums in tests/maths. What a LoRA is trained on (M5 to M8) is
in `nft_pipeline.training.learn.maths`. DiffusionNFT: arXiv:2509.16117.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import did_you_mean
from .families.prediction import PREDICTIONS
from .laws import COMBINATIONS, LAWS, odds_weight
from .tensors import finite, in_unit, per_sample, positive, same_shape, work_dtype


def combine(v_old: Tensor, v_lora: Tensor, scale: float | Tensor) -> Tensor:
    """Guided output `v_old + scale (v_lora - v_old)`.

    Computed in float32 (float64 stays float64) because the difference of two half-precision outputs loses most of its
    digits; cast back to `v_old.dtype` at the end.

    Args:
        v_old: base output, shape (B, ...), any prediction type (M9).
        v_lora: output with the LoRA on, same shape.
        scale: 0 is the base and 1 is `v_lora`, both bit for bit (a Python 0 returns `v_old` itself). A number, or a
            Tensor of shape () or (B,) for one scale per sample. A Tensor's values are not checked: that would stall a
            GPU each step.

    Raises:
        ValueError: shapes differ, a non-floating dtype, a scale of the wrong shape, or a non-finite Python scale.
    """
    return combine_all(v_old, [v_lora], [scale])


def combine_all(v_old: Tensor, v_loras: Sequence[Tensor], scales: Sequence[float | Tensor]) -> Tensor:
    """Guided output of several adapters at once, `v_old + sum_k scale_k (v_lora_k - v_old)`; otherwise as `combine`.

    Which law the result belongs to depends on the scales (M14). With each adapter's own they are the sum of pushes: to
    first order what a reward that adds the log-weights of all would ask for (M4), and under the odds law exactly
    p_old (1 + rho_1 r_1)(1 + rho_2 r_2) if E[r_1 r_2 | x_t] = alpha_1 alpha_2, which is rare. `combined_scales` gives
    those of "any of them", and `product_scales` those of the product with a third adapter for r_1 r_2; both are exact.
    """
    if all(not isinstance(scale, Tensor) and scale == 0 for scale in scales):
        return v_old
    return add_push(v_old, total_push(v_old, v_loras, scales), scales, v_loras)


def add_push(v_old: Tensor, push: Tensor, scales: Sequence[float | Tensor], v_loras: Sequence[Tensor] = ()) -> Tensor:
    """`v_old + push`, cast back to `v_old.dtype`; a sample whose scales are all 0 is v_old, bit for bit.

    Args:
        v_old: base output, shape (B, ...).
        push: `total_push`, same shape, float32 or wider.
        scales: those the push was made with; numbers, or Tensors of shape () or (B,).
        v_loras: the output with each LoRA on, of v_old's shape. If they are given, a sample with one scale of 1 and all
            others 0 is that output, bit for bit.
    """
    guided = (v_old.to(push.dtype) + push).to(v_old.dtype)
    each = [per_sample("scale", scale, v_old, push.dtype) for scale in scales]
    working: Any = sum((scale != 0).int() for scale in each)
    # x + (y - x) rounds, and x + 0 (y - x) is not x when x is -0.0 or y is not finite: keep "0 is the base and 1 is the
    # LoRA, bit for bit" for each sample too.
    for scale, v_lora in zip(each, v_loras, strict=False):
        guided = torch.where((scale == 1) & (working == 1), v_lora.to(v_old.dtype), guided)
    return torch.where(torch.as_tensor(working == 0, device=v_old.device), v_old, guided)


def total_push(v_old: Tensor, v_loras: Sequence[Tensor], scales: Sequence[float | Tensor]) -> Tensor:
    """`sum_k scale_k (v_lora_k - v_old)`, in float32 or wider. Arguments as `combine_all`, at least one adapter."""
    work = work_dtype(v_old, *v_loras)
    push = torch.zeros_like(v_old, dtype=work)
    for v_lora, scale in zip(v_loras, scales, strict=True):
        same_shape(v_old=v_old, v_lora=v_lora)
        if not isinstance(scale, Tensor):
            scale = finite("scale", scale, "0 is the base, 1 is the LoRA")
        push = push + per_sample("scale", scale, v_old, work) * (v_lora.to(work) - v_old.to(work))
    return push


def relative_push(
    push: Tensor, v_old: Tensor, x_t: Tensor, t: float | Tensor, prediction: str = "flow", sign: float = 1.0
) -> Tensor:
    """How far guidance moves the predicted picture, as a fraction of its size: `||x0hat - x0hat_old|| / ||x0hat_old||`.

    x_0 is the one space in which the push of a noise, an x_0, a VP velocity and a flow model is the same (M9 holds for
    directions, not for lengths). Up to a common factor, with n = sqrt((1 - t)^2 + t^2):

        flow      x0hat ~ x_t - t v                   moves by t push
        epsilon   x0hat ~ n x_t - t eps               moves by t push       x_t the variance-preserving one
        v         x0hat ~ (1 - t) x_t - t v           moves by t push
        sample    x0hat = the output                  moves by push

    Args:
        push: s (v_lora - v_old) in the raw output's own space, shape (B, ...).
        v_old: base output, same shape.
        x_t: noisy input, same shape.
        t: noise level in [0, 1], a number or (B,).
        prediction: one of `PREDICTIONS`.
        sign: -1 for a model whose output is the negative of that prediction.

    Returns:
        Shape (B,), float32 or wider, 0 and up.

    Raises:
        ValueError: shapes differ, or an unknown prediction.
    """
    same_shape(push=push, v_old=v_old, x_t=x_t)
    work = work_dtype(push, v_old, x_t)
    level = per_sample("t", t, v_old, work)
    output, x = sign * v_old.to(work), x_t.to(work)
    if prediction == "sample":
        picture, moved = output, push.to(work)
    elif prediction in PREDICTIONS:
        of_x_t = {"flow": torch.ones_like(level), "epsilon": torch.hypot(1 - level, level), "v": 1 - level}[prediction]
        picture, moved = of_x_t * x - level * output, level * push.to(work)
    else:
        raise ValueError(_unknown("prediction", prediction, PREDICTIONS))
    return moved.flatten(1).norm(dim=1) / picture.flatten(1).norm(dim=1).clamp(min=1e-12)


def cap_factor(push: Tensor, cap: float | None) -> Tensor:
    """What to multiply scales by so that no sample's push is above the cap: `min(1, cap / push)`, shape (B,).

    Args:
        push: `relative_push`, (B,), 0 and up.
        cap: the largest push allowed, above 0; None is no limit, so 1.
    """
    return torch.ones_like(push) if cap is None else (cap / push.clamp(min=1e-12)).clamp(max=1.0)


def law_scale(alpha: float | Tensor, tilt: float | Tensor, law: str = "nft") -> Tensor:
    """Scale `s` of a positive adapter, per sample: how far to go from v_old towards, or past, v_plus.

        nft:   s = tilt alpha                      M4, the score of p_old exp(tilt alpha) at each t
        odds:  s = rho alpha / (1 + rho alpha)     M10, rho = exp(tilt) - 1; exact, and never past v_plus

    Args:
        alpha: probabilities in [0, 1], any shape, usually (B,).
        tilt: 0 is off, 1 to 4 is usual, negative seeks what the reward dislikes. A number or a Tensor that broadcasts.
            The odds law takes infinities: +inf gives 1 wherever alpha > 0, -inf gives -alpha / (1 - alpha).
        law: a name in `nft_pipeline.laws.LAWS`.

    Returns:
        s with the broadcast shape, float32 or wider.

    Raises:
        ValueError: unknown law, alpha outside [0, 1], tilt NaN (or infinite under "nft"), or a scale too large to
            represent (alpha = 1 at a very negative tilt: nothing disliked passes through that state).
    """
    if law not in list(LAWS):
        raise ValueError(_unknown("law", law, LAWS))
    a = torch.as_tensor(alpha)
    a = a.to(work_dtype(a))
    in_unit("alpha", a, "it is a probability: pass the head's sigmoid output, not its logits")
    return LAWS[law].scale(a.clamp(0, 1), torch.as_tensor(tilt, dtype=a.dtype, device=a.device))


def combined_scales(scales: Sequence[float | Tensor], combine: str = "all") -> list[Tensor]:
    """Scales of several adapters at once, from the scale that each would have alone (M14).

        all:  s_k as it is: the pushes are added
        any:  s_k' = g_k / (1 + sum_j g_j),  g_k = s_k / (1 - s_k)

    "any" is exact for p_old (1 + sum_k rho_k r_k), "at least one of the rewards likes it", with the adapters there are.
    Under the odds law g_k = rho_k alpha_k, so it is the odds law with one denominator for all. What a scale has above 1
    is past what its LoRA alone would draw; it is left out of the sum and added again afterwards. One adapter in company
    of scales that are 0 keeps its own.

    Args:
        scales: s of each adapter alone, numbers or Tensors that broadcast, usually (B,); at least one.
        combine: a name in `nft_pipeline.laws.COMBINATIONS`.

    Returns:
        A scale for each adapter, in their order, float32 or wider.

    Raises:
        ValueError: unknown name, no scales, or, for "any", more than one negative scale for a sample: the weight
            1 + sum_k rho_k r_k, with each rho_k above -1, is surely positive if only one of them is negative.
    """
    if combine not in list(COMBINATIONS):
        raise ValueError(_unknown("combination", combine, COMBINATIONS))
    if not scales:
        raise ValueError("combined_scales got no scales. Pass the scale of each adapter, at least one.")
    tensors = [torch.as_tensor(scale) for scale in scales]
    work = work_dtype(*tensors)
    return COMBINATIONS[combine].scales([scale.to(work) for scale in tensors])


def product_scales(
    alphas: tuple[Tensor, Tensor], alpha_joint: Tensor, tilts: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Scales of two adapters and of a joint one, trained on r_1 r_2, for the exact product of two odds laws (M14).

        p_old (1 + rho_1 r_1)(1 + rho_2 r_2),   D = 1 + rho_1 alpha_1 + rho_2 alpha_2 + rho_1 rho_2 alpha_12
        s_1 = rho_1 alpha_1 / D,   s_2 = rho_2 alpha_2 / D,   s_12 = rho_1 rho_2 alpha_12 / D

    For 0/1 rewards this is p_old exp(tilt_1 r_1 + tilt_2 r_2). `combine_all` takes the scales with (v_1, v_2, v_12).

    Args:
        alphas: alpha_1 and alpha_2, probabilities, usually (B,).
        alpha_joint: alpha_12 = E[r_1 r_2 | x_t], same shape. It is moved to where a probability of both can lie,
            [max(0, alpha_1 + alpha_2 - 1), min(alpha_1, alpha_2)]: heads that contradict each other would make D
            negative.
        tilts: of r_1 and r_2, finite, either sign.

    Returns:
        s_1, s_2 and s_12, each with the broadcast shape, float32 or wider.

    Raises:
        ValueError: an alpha outside [0, 1], a tilt not finite, or states with D = 0: one of the alphas is 1 and its
            tilt very negative, so that nothing allowed passes there.
    """
    work = work_dtype(*alphas, alpha_joint)
    for alpha in (*alphas, alpha_joint):
        in_unit("alpha", alpha, "it is a probability: pass the head's sigmoid output, not its logits")
    one, two = (alpha.to(work).clamp(0, 1) for alpha in alphas)
    both = torch.minimum(torch.maximum(alpha_joint.to(work), (one + two - 1).clamp(min=0)), torch.minimum(one, two))
    first, second = (finite("tilt", tilt, "0 is off") for tilt in tilts)
    # rho / max(1, e^tilt) and 1 / max(1, e^tilt): every numerator is divided by the same, so that nothing overflows.
    rho_1, rho_2 = (math.copysign(-math.expm1(-abs(tilt)), tilt) for tilt in (first, second))
    unit_1, unit_2 = (math.exp(-max(tilt, 0.0)) for tilt in (first, second))
    odds_1, odds_2 = (math.exp(min(tilt, 0.0)) for tilt in (first, second))
    total = (
        unit_1 * unit_2 * (1 - one - two + both).clamp(min=0)
        + odds_1 * unit_2 * (one - both)
        + unit_1 * odds_2 * (two - both)
        + odds_1 * odds_2 * both
    )
    if not bool((total > 0).all()):
        raise ValueError(
            f"no weight is left at alpha_1 = {float(one.max()):g}, alpha_2 = {float(two.max()):g} with tilts "
            f"{first:g} and {second:g}. Use tilts of -20 or above, or clamp the alphas below 1."
        )
    return rho_1 * unit_2 * one / total, unit_1 * rho_2 * two / total, rho_1 * rho_2 * both / total


def policy_scale(tilt: float, tilt_train: float) -> float:
    """Scale `s = tilt / tilt_train` of a policy adapter, whose v_theta holds v_old + tilt_train Delta already.

    Multiplying by alpha here would count it twice. Args: tilt, the one wanted (finite; 0 is the base); tilt_train > 0,
    2 / beta of an offline training or `accumulated_tilt` of an online one. Source: arXiv:2508.21016 (RLG).

    Raises:
        ValueError: tilt not finite, or tilt_train not finite and positive.
    """
    return finite("tilt", tilt, "0 is the base") / positive("tilt_train", tilt_train, "2 / beta of the training")


def tilt_from_beta(beta: float) -> float:
    """Tilt `2 / beta` (M4). Raises ValueError unless beta is finite and positive."""
    return 2.0 / positive("beta", beta, "2 / beta is the tilt; for no guidance use strength 0, not a huge beta")


def beta_from_tilt(tilt: float) -> float:
    """Beta `2 / tilt` (M4). Raises ValueError unless tilt is finite and positive: no beta stands for 0 or below."""
    return 2.0 / positive("tilt", tilt, "only a positive tilt has a beta; say tilts of 0 and below as a strength")


def tilt_from_strength(strength: float, recommended_tilt: float) -> float:
    """Tilt `strength * recommended_tilt`: strength 0 is the base, 1 is the adapter as shipped, below 0 leads away.

    Raises:
        ValueError: strength not finite, or recommended_tilt not finite and positive.
    """
    recommended = positive("recommended_tilt", recommended_tilt, "the adapter's tilt at strength 1")
    return finite("strength", strength, "0 is the base, 1 the adapter as shipped") * recommended


def promised_rate(rate: float, tilt: float) -> float:
    """What a 0/1 reward's rate must become: `p e^tilt / (1 - p + p e^tilt)`, the odds multiplied by e^tilt (M10).

    For 0/1 rewards the odds law IS the exponential tilt, so one promise serves both. Infinite tilts give the limits.

    Args:
        rate: p, the share of liked pictures without guidance, in [0, 1].
        tilt: any number, infinities included.

    Raises:
        ValueError: rate outside [0, 1] or tilt NaN.
    """
    p = torch.tensor(float(rate), dtype=torch.float64)
    in_unit("rate", p, "it is the share of liked pictures without guidance")
    liked = p * torch.exp(_tilt_tensor(tilt, p).clamp(max=0))
    total = odds_weight(p, _tilt_tensor(tilt, p))
    return float(liked / total) if float(total) > 0 else float(p)  # none or all are liked: unchanged


def promised_mean(rewards: Sequence[float] | Tensor, tilt: float) -> float:
    """What a graded reward's mean must become under the odds law: `E[r (1 + rho r)] / (1 + rho E[r])` (M10).

    Expectations under p_old, here the mean over the given samples. For 0/1 rewards this equals `promised_rate`.

    Args:
        rewards: one reward in [0, 1] for each unguided sample; a sequence or a Tensor of any shape, not empty.
        tilt: any number, infinities included.

    Raises:
        ValueError: no rewards, a reward outside [0, 1], or tilt NaN.
    """
    r = torch.as_tensor(rewards).detach().cpu().to(torch.float64)  # on the CPU first: MPS has no float64
    if r.numel() == 0:
        raise ValueError("promised_mean got no rewards. Score at least one unguided sample first.")
    in_unit("rewards", r, "map the raw scores to probabilities first")
    weight = odds_weight(r, _tilt_tensor(tilt, r))
    return float((weight * r).sum() / weight.sum()) if float(weight.sum()) > 0 else float(r.mean())


def in_interval(noise_level: float | Tensor, interval: tuple[float, float]) -> Tensor:
    """Bool Tensor: is each noise level inside the closed interval? Guidance is off outside it (and costs nothing).

    Args:
        noise_level: t in [0, 1], any shape; 1 is the first step, pure noise.
        interval: (low, high) with 0 <= low <= high <= 1; (0, 1) is everywhere. High noise decides composition, low
            noise decides texture.

    Raises:
        ValueError: an ill-formed interval, or a noise level outside [0, 1] (a scheduler's 0..1000 timestep, or NaN).
    """
    try:
        low, high = (float(edge) for edge in interval)
    except (TypeError, ValueError):
        raise ValueError(f"interval must be two numbers (low, high), got {interval!r}. (0, 1) is everywhere.") from None
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"interval needs 0 <= low <= high <= 1, got ({low:g}, {high:g}). Edges are noise levels: 0 is the picture, "
            "1 is pure noise; (0, 1) is everywhere."
        )
    t = torch.as_tensor(noise_level)
    in_unit("noise_level", t, "divide a scheduler's timestep by its number of training steps (usually 1000)")
    t = t.clamp(0, 1)
    return (t >= low) & (t <= high)


def _tilt_tensor(tilt: float, like: Tensor) -> Tensor:
    if math.isnan(tilt):
        raise ValueError("tilt is NaN. Pass a number; 0 switches guidance off.")
    return torch.tensor(float(tilt), dtype=like.dtype)


def _unknown(kind: str, value: object, known: Iterable[str]) -> str:
    hint = did_you_mean(value, known, " Did you mean {!r}?", cutoff=0.4)
    return f"unknown {kind} {value!r}.{hint} Known: {', '.join(map(repr, known))}."
