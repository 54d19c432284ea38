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
statements of docs/theory.md, each checked against exact sums in tests/maths. DiffusionNFT: arXiv:2509.16117.
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
    each = [_per_sample("scale", scale, v_old, push.dtype) for scale in scales]
    working: Any = sum((scale != 0).int() for scale in each)
    # x + (y - x) rounds, and x + 0 (y - x) is not x when x is -0.0 or y is not finite: keep "0 is the base and 1 is the
    # LoRA, bit for bit" for each sample too.
    for scale, v_lora in zip(each, v_loras, strict=False):
        guided = torch.where((scale == 1) & (working == 1), v_lora.to(v_old.dtype), guided)
    return torch.where(torch.as_tensor(working == 0, device=v_old.device), v_old, guided)


def total_push(v_old: Tensor, v_loras: Sequence[Tensor], scales: Sequence[float | Tensor]) -> Tensor:
    """`sum_k scale_k (v_lora_k - v_old)`, in float32 or wider. Arguments as `combine_all`, at least one adapter."""
    work = _work_dtype(v_old, *v_loras)
    push = torch.zeros_like(v_old, dtype=work)
    for v_lora, scale in zip(v_loras, scales, strict=True):
        _same_shape(v_old=v_old, v_lora=v_lora)
        if not isinstance(scale, Tensor):
            scale = _finite("scale", scale, "0 is the base, 1 is the LoRA")
        push = push + _per_sample("scale", scale, v_old, work) * (v_lora.to(work) - v_old.to(work))
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
    _same_shape(push=push, v_old=v_old, x_t=x_t)
    work = _work_dtype(push, v_old, x_t)
    level = _per_sample("t", t, v_old, work)
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
    a = a.to(_work_dtype(a))
    _in_unit("alpha", a, "it is a probability: pass the head's sigmoid output, not its logits")
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
    work = _work_dtype(*tensors)
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
    work = _work_dtype(*alphas, alpha_joint)
    for alpha in (*alphas, alpha_joint):
        _in_unit("alpha", alpha, "it is a probability: pass the head's sigmoid output, not its logits")
    one, two = (alpha.to(work).clamp(0, 1) for alpha in alphas)
    both = torch.minimum(torch.maximum(alpha_joint.to(work), (one + two - 1).clamp(min=0)), torch.minimum(one, two))
    first, second = (_finite("tilt", tilt, "0 is off") for tilt in tilts)
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
    return _finite("tilt", tilt, "0 is the base") / _positive("tilt_train", tilt_train, "2 / beta of the training")


def tilt_from_beta(beta: float) -> float:
    """Tilt `2 / beta` (M4). Raises ValueError unless beta is finite and positive."""
    return 2.0 / _positive("beta", beta, "2 / beta is the tilt; for no guidance use strength 0, not a huge beta")


def beta_from_tilt(tilt: float) -> float:
    """Beta `2 / tilt` (M4). Raises ValueError unless tilt is finite and positive: no beta stands for 0 or below."""
    return 2.0 / _positive("tilt", tilt, "only a positive tilt has a beta; say tilts of 0 and below as a strength")


def tilt_from_strength(strength: float, recommended_tilt: float) -> float:
    """Tilt `strength * recommended_tilt`: strength 0 is the base, 1 is the adapter as shipped, below 0 leads away.

    Raises:
        ValueError: strength not finite, or recommended_tilt not finite and positive.
    """
    recommended = _positive("recommended_tilt", recommended_tilt, "the adapter's tilt at strength 1")
    return _finite("strength", strength, "0 is the base, 1 the adapter as shipped") * recommended


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
    _in_unit("rate", p, "it is the share of liked pictures without guidance")
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
    _in_unit("rewards", r, "map the raw scores to probabilities first")
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
    _in_unit("noise_level", t, "divide a scheduler's timestep by its number of training steps (usually 1000)")
    t = t.clamp(0, 1)
    return (t >= low) & (t <= high)


def anchor_kappa(eta0: float, eta1: float) -> float:
    """Weight `kappa = eta1 / eta0` of the pull to v_ref in `||v - target||^2 + kappa ||v - v_ref||^2` (M7).

    Args:
        eta0: the tilt the anchored training converges to (M8), > 0; infinity means no anchor (kappa = 0).
        eta1: the tilt added each round, 2 / beta, > 0 and finite.

    Raises:
        ValueError: either is out of range.
    """
    return _positive("eta1", eta1, "2 / beta, the tilt added each round") / _eta0(eta0)


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
    step = _positive("eta1", eta1, "2 / beta, the tilt added each round")
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
    _same_shape(v_old=v_old, y=y)
    work = _work_dtype(v_old, y)
    old = v_old.detach().to(work)
    lam = _per_sample("tilt", tilt if isinstance(tilt, Tensor) else _finite("tilt", tilt, "2 / beta"), old, work)
    r_, b_ = (_unit_per_sample(name, value, old) for name, value in (("r", r), ("baseline", baseline)))
    _in_unit("refit", torch.tensor(float(refit)), "0 leaves v_old's own error where it is, 1 takes it out")
    return old + (lam * (r_ - b_) + refit) * (y.to(work) - old)


def anchored_target(target: Tensor, v_ref: Tensor, weight: float) -> Tensor:
    """Optimum `w target + (1 - w) v_ref` of the anchored step (M7), w = `anchor_weight(eta0, eta1)` in [0, 1].

    Raises:
        ValueError: shapes differ, or weight outside [0, 1].
    """
    _same_shape(target=target, v_ref=v_ref)
    _in_unit("weight", torch.tensor(float(weight)), "use anchor_weight(eta0, eta1); 1 means no anchor")
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
    _same_shape(v_theta=v_theta, v_old=v_old, y=y)
    beta, work = _positive("beta", beta, "2 / beta is the tilt"), _work_dtype(v_theta, v_old, y)
    v, old, y = v_theta.to(work), v_old.detach().to(work), y.to(work)
    liked = _unit_per_sample("r", r, v)
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
    _same_shape(v_theta=v_theta, v_old=v_old, x_t=x_t, x_0=x_0)
    beta = _positive("beta", beta, "2 / beta is the tilt")
    factor = _positive("adv_clip_max", adv_clip_max, "the authors use 5")
    floor = _positive("weight_floor", weight_floor, "the authors use 1e-5")
    work = _work_dtype(v_theta, v_old, x_t, x_0)
    v, old, x_t, x_0 = v_theta.to(work), v_old.detach().to(work), x_t.to(work), x_0.to(work)
    noise, liked = _unit_per_sample("t", t, v), _unit_per_sample("r", r, v).flatten()

    def branch(velocity: Tensor) -> Tensor:
        error = x_t - noise * velocity - x_0
        return _sample_mean(error**2) / _sample_mean(error.detach().abs()).clamp(min=floor)

    plus = branch(beta * v + (1 - beta) * old)
    minus = branch((1 + beta) * old - beta * v)
    return factor * (liked * plus + (1 - liked) * minus) / beta


def _tilt_tensor(tilt: float, like: Tensor) -> Tensor:
    if math.isnan(tilt):
        raise ValueError("tilt is NaN. Pass a number; 0 switches guidance off.")
    return torch.tensor(float(tilt), dtype=like.dtype)


def _work_dtype(*tensors: Tensor) -> torch.dtype:
    """The widest dtype among the tensors, float32 at least."""
    work = torch.float32
    for tensor in tensors:
        work = torch.promote_types(work, tensor.dtype)
    return work


def _sample_mean(x: Tensor) -> Tensor:
    """Mean over everything but the batch: (B, ...) -> (B,)."""
    return x.reshape(x.shape[0], -1).mean(dim=1)


def _per_sample(name: str, value: float | Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A number, () or (B,) as a Tensor that broadcasts over (B, ...)."""
    tensor = torch.as_tensor(value, dtype=dtype, device=like.device)
    if tensor.ndim == 0:
        return tensor
    if tensor.ndim != 1 or like.ndim == 0 or tensor.shape[0] != like.shape[0]:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} for a batch of shape {tuple(like.shape)}. Expected a number, "
            f"shape () or ({like.shape[0] if like.ndim else 1},): one value per sample."
        )
    return tensor.reshape(-1, *[1] * (like.ndim - 1))


def _unit_per_sample(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    tensor = _per_sample(name, value, like, like.dtype)
    _in_unit(name, tensor, "it is a probability or a noise level; map other scales first")
    return tensor


def _same_shape(**tensors: Tensor) -> None:
    if len({tuple(tensor.shape) for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"shapes differ: {shapes}. All must be alike: pass the same batch through both branches.")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}, expected a floating dtype. Convert it with .float().")


def _in_unit(name: str, value: Tensor, advice: str) -> None:
    slack = 1e-6  # a mean of probabilities, or 1000 / 1000 in float32, may miss the edge by rounding
    wrong = value[~((value >= -slack) & (value <= 1 + slack))]  # NaN fails both comparisons
    if wrong.numel():
        raise ValueError(f"{name} must lie in [0, 1], got {float(wrong.flatten()[0]):g}: {advice}.")


def _finite(name: str, value: float, meaning: str) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value} ({meaning}).")
    return float(value)


def _positive(name: str, value: float, meaning: str) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value} ({meaning}).")
    return float(value)


def _eta0(eta0: float) -> float:
    if not eta0 > 0:
        raise ValueError(f"eta0 must be above 0, got {eta0}: it is the tilt that anchored training converges to.")
    return float(eta0)


def _unknown(kind: str, value: object, known: Iterable[str]) -> str:
    hint = did_you_mean(value, known, " Did you mean {!r}?", cutoff=0.4)
    return f"unknown {kind} {value!r}.{hint} Known: {', '.join(map(repr, known))}."
