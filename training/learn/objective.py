"""What the LoRA and the alpha head learn from scored pictures. Torch only, no model inside.

    positive   E[ r |v_plus - y|^2 ] / E[r]                        minimised by  v_plus = E[r y | x_t] / E[r | x_t]
    policy     |v - target|^2 + kappa |v - v_ref|^2                minimised by  v_ref (1 - w) + w (v_old + tilt Delta)
               target = v_old + (tilt (r - b) + refit)(y - v_old)  b: 1/2, the mean of r, or alpha(x_t)
               by the odds law tilt is rho / (1 + rho alpha)       minimised by  M10's v_old + s (v_plus - v_old)
               samples may be weighed as `paper` weighs them        `self_weight`
    paper      DiffusionNFT's loss as its authors write it         `paper_loss`
               + 0.0001 |v - v_ref|^2 as their trainer adds it     `authors.KL`
    head       BCE(alpha, r)                                       minimised by  alpha = E[r | x_t]

These are M1, M2, M6 and M7 of docs/theory.md; the formulas stand in `maths.py`. Outputs and targets are the
network's own, of any prediction type: these losses are the same affine map of each other in both (M9), and on the raw
output the noise levels keep the weights the network was trained with. `paper` is written in x_0 and converts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from nft_pipeline.checks import value_faults

from .. import authors
from ..bases.noising import velocity, velocity_gain
from ..settings.choices import BASELINES, KINDS, STEP_LAWS, Baseline, Kind, StepLaw
from ..settings.config import TrainConfig
from ..settings.objective import ObjectiveSettings, objective_faults
from .maths import accumulated_tilt, anchor_kappa, anchor_weight, paper_loss, regression_target


def squared_error(v: Tensor, target: Tensor) -> Tensor:
    """|v - target|^2 per sample, as the mean over its dimensions: shape (B,), float32 or wider."""
    work = torch.promote_types(torch.promote_types(v.dtype, target.dtype), torch.float32)
    return (v.to(work) - target.to(work)).square().flatten(1).mean(1)


def positive_loss(v: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """weight |v - y|^2 per sample, shape (B,).

    There are two ways to weigh pictures by r: draw them in proportion to r and weigh all alike (`weight=None`), or draw
    evenly and weigh by r / E[r]. Both have the same expectation. The first has less noise and spends no forward on
    pictures of weight zero.
    """
    error = squared_error(v, y)
    return error if weight is None else weight * error


def policy_loss(
    v: Tensor,
    v_old: Tensor,
    y: Tensor,
    r: Tensor,
    tilt: float | Tensor,
    baseline: float | Tensor,
    v_ref: Tensor | None = None,
    kappa: float = 0.0,
    refit: float = 0.0,
) -> Tensor:
    """|v - target|^2 + kappa |v - v_ref|^2 per sample, shape (B,): M6's regression with M7's anchor.

    Args:
        v, v_old, y, v_ref: outputs of the trained, the old and the reference model, and the target; (B, ...).
        r: scores in [0, 1], (B,).
        tilt: 2 / beta, the tilt a converged round adds; or `odds_tilt` of it, (B,).
        baseline: b in [0, 1], a number or (B,). It carries no gradient.
        kappa: `anchor_kappa(eta0, tilt)`; 0 is no anchor, and `v_ref` may then be None.
        refit: the share of v_old's own error that a converged round corrects, in [0, 1].

    Raises:
        ValueError: as `regression_target`, or kappa without v_ref.
    """
    b = baseline.detach() if isinstance(baseline, Tensor) else baseline
    loss = squared_error(v, regression_target(v_old, y, r, tilt, b, refit))
    if kappa == 0:
        return loss
    if v_ref is None:
        raise ValueError(f"kappa is {kappa:g} and v_ref is missing: an anchor needs the reference model's output")
    return loss + kappa * squared_error(v, v_ref.detach())


def odds_tilt(tilt: float, alpha: Tensor) -> Tensor:
    """`rho / (1 + rho alpha)` per sample, rho = e^tilt - 1: the tilt with which M6's regression learns the odds law.

    The mean of the target is then v_old + rho Delta / (1 + rho alpha), the velocity of the pictures weighed by
    1 + rho r (M10). For rewards of 0 and 1 these are the pictures of p_old e^(tilt r), exactly, so that the tilts of
    rounds add up.

    Args:
        tilt: what the round is to add, 0 or above.
        alpha: E[r | x_t] under old, in [0, 1], (B,).
    """
    share = -math.expm1(-tilt)  # rho / (1 + rho): numerator and denominator are divided by e^tilt, which may overflow
    return share / (math.exp(-tilt) + share * alpha)


def self_weight(v_old: Tensor, y: Tensor, t: Tensor, prediction: str, floor: float = 1e-5) -> Tensor:
    """Each sample's weight in DiffusionNFT's self-normalised loss (arXiv:2509.16117) where v_theta is v_old, (B,).

        t^2 g^2 / m,   m = max(mean|x0hat_old - x_0|, floor) = max(t g mean|v_old - y|, floor)

    Here x0hat_old is the picture that the old model predicts, and g is `velocity_gain`. With this weight, pictures that
    the old model predicts badly pull no harder than others, and low noise levels pull less. The weight depends on y, so
    the optimum is that of pictures drawn in proportion to 1 / m.

    Args:
        v_old, y: raw output of the old model, and its target, (B, ...).
        t: noise levels in (0, 1), (B,).
        prediction: the network's prediction type.
        floor: the smallest m, > 0.
    """
    work = torch.promote_types(torch.promote_types(v_old.dtype, y.dtype), torch.float32)
    size = t.to(work) * velocity_gain(prediction, t.to(work))
    missed = (v_old.detach().to(work) - y.to(work)).abs().flatten(1).mean(1)
    return size.square() / (size * missed).clamp(min=floor)


def alpha_loss(logit: Tensor, r: Tensor) -> Tensor:
    """Binary cross entropy per sample, of the head's logit (B,) against r (B,) in [0, 1], graded rewards included."""
    work = torch.promote_types(logit.dtype, torch.float32)
    return F.binary_cross_entropy_with_logits(logit.to(work), r.to(work), reduction="none")


@dataclass(frozen=True)
class States:
    """A batch of noisy states and what the network should output there.

    Args:
        x_0, x_t, y: pictures, noisy states and raw targets of the network, (B, ...).
        t: noise levels, (B,).
        r: scores in [0, 1], (B,).
        prediction: the network's prediction type, which says what y is.
    """

    x_0: Tensor
    x_t: Tensor
    y: Tensor
    t: Tensor
    r: Tensor
    prediction: str = "flow"


@dataclass(frozen=True)
class Objective:
    """Which loss, at which tilt, with which baseline and anchor.

    Args:
        kind: "positive", "policy" or "paper".
        tilt: 2 / beta, > 0. For a policy the tilt that one converged round adds (eta1); for a positive adapter only
            what strength 1 will mean.
        baseline: b of a policy: "half", "mean" (of r) or "alpha", which needs a head.
        eta0: the tilt that an anchored policy converges to over the rounds; None or infinity is no anchor.
        refit: for a policy, the share of old's own error v_old - E[y | x_t] that a converged round corrects, in [0, 1].
        self_normalise: whether a policy's samples are weighed by `self_weight`.
        step_law: "nft" or "odds", the law by which a policy takes a round's tilt in.
        authors_trainer: whether "paper" has the velocity KL of its authors' trainer.

    Raises:
        ValueError: an unknown kind, baseline or law, a number out of range, or numbers that do not go together.
    """

    kind: Kind
    tilt: float = 2.0
    baseline: Baseline = "alpha"
    eta0: float | None = None
    refit: float = 0.0
    self_normalise: bool = False
    step_law: StepLaw = "nft"
    authors_trainer: bool = False

    @classmethod
    def of(cls, config: TrainConfig) -> Objective:
        """The objective of a run, with its numbers."""
        numbers = {entry.name: getattr(config, entry.name) for entry in fields(cls)}
        return cls(**numbers)

    def __post_init__(self) -> None:
        names = (("objective", self.kind, KINDS), ("baseline", self.baseline, BASELINES))
        for name, value, known in (*names, ("step_law", self.step_law, STEP_LAWS)):
            if value not in known:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(known)}")
        anchor_kappa(self._limit, self.tilt)  # raises for numbers out of range
        settings = ObjectiveSettings(
            baseline=self.baseline,
            eta0=self.eta0 if self.anchored else None,
            refit=self.refit,
            self_normalise=self.self_normalise,
            step_law=self.step_law,
            authors_trainer=self.authors_trainer,
        )
        faults = value_faults({"refit": self.refit}, ObjectiveSettings.checks) + objective_faults(settings, self.kind)
        if faults:
            raise ValueError("; ".join(faults))

    @property
    def _limit(self) -> float:
        return math.inf if self.eta0 is None else self.eta0

    @property
    def anchored(self) -> bool:
        """Whether an anchor (M7) holds the model: eta0 is given."""
        return math.isfinite(self._limit)

    @property
    def needs_ref(self) -> bool:
        """Whether the loss reads the base model's output: for M7's pull, or for the velocity KL of the authors."""
        return self.authors_trainer or (self.anchored and self.step_law == "nft")

    @property
    def kappa(self) -> float:
        """eta1 / eta0, the weight of the pull to the base (M7); 0 without one."""
        return anchor_kappa(self._limit, self.tilt) if self.step_law == "nft" else 0.0

    @property
    def weight(self) -> float:
        """w = eta0 / (eta0 + eta1), the share of a step that the anchor leaves (M7); 1 without an anchor."""
        return anchor_weight(self._limit, self.tilt)

    @property
    def has_head(self) -> bool:
        """Whether an alpha head is trained along."""
        return self.kind == "positive" or (self.kind == "policy" and self.baseline == "alpha")

    def added(self, reached: float) -> float:
        """The tilt a converged round adds by the odds law if old has `reached` so far: M8's next value, less that."""
        return max(0.0, self.weight * (reached + self.tilt) - reached)

    def loss(
        self,
        output: Tensor,
        states: States,
        *,
        old: Tensor | None = None,
        ref: Tensor | None = None,
        baseline: float | Tensor = 0.5,
        reached: float = 0.0,
    ) -> Tensor:
        """The loss per sample, shape (B,), from the raw outputs of the trained, the old and the reference model.

        For kind "positive" the states must have been drawn in proportion to r. `baseline` is the value of b: 1/2, the
        mean of r, or alpha of shape (B,). `reached` is the tilt that old has accumulated; the odds law reads it.

        Raises:
            ValueError: an output this objective needs is missing, or values out of range.
        """
        if self.kind == "positive":
            return positive_loss(output, states.y)
        if old is None:
            raise ValueError(f"objective {self.kind!r} needs the old model's output")
        if self.kind == "policy":
            tilt: float | Tensor = self.tilt
            if self.step_law == "odds":
                tilt = odds_tilt(self.added(reached), torch.as_tensor(baseline, device=old.device).detach())
            loss = policy_loss(output, old, states.y, states.r, tilt, baseline, ref, self.kappa, self.refit)
            return loss * self_weight(old, states.y, states.t, states.prediction) if self.self_normalise else loss
        v, v_old = (velocity(states.prediction, o, states.x_t, states.t) for o in (output, old))
        loss = paper_loss(v, v_old, states.x_t, states.x_0, states.t, states.r, 2 / self.tilt)
        if not self.authors_trainer:
            return loss
        if ref is None:
            raise ValueError("the authors' velocity KL needs the reference model's output")
        v_ref = velocity(states.prediction, ref, states.x_t, states.t)
        return loss + authors.KL * squared_error(v, v_ref.detach())

    def passes(self, online: bool) -> tuple[int, int]:
        """(forwards, backwards) of the denoiser for each sample.

        Offline the old and the reference model are both the base model, whose pass also feeds the head.
        """
        return (3 if online and self.needs_ref else 2), 1

    def describe(self, online: bool, rounds: int = 1) -> str:
        """What the numbers mean, in words; a run prints this at its start."""
        forwards, backwards = self.passes(online)
        cost = f"{forwards} forwards + {backwards} backward per sample"
        if self.kind == "positive":
            return (
                f"objective positive: the LoRA learns v_plus, the head alpha; strength 1 is a tilt of {self.tilt:g}, "
                f"the odds of a liked picture times {math.exp(self.tilt):.3g}; {cost}"
            )
        what = "" if self.kind == "paper" else f", baseline {self.baseline}"
        what += f", refit {self.refit:g}" if self.refit else ""
        what += ", self-normalised" if self.self_normalise else ""
        what += ", odds law" if self.step_law == "odds" else ""
        what += f", velocity KL {authors.KL:g} to the base" if self.authors_trainer else ""
        reached = accumulated_tilt(self.tilt, rounds, self.eta0)
        anchor = "no anchor: the tilt grows with every round"
        if self.anchored:
            pull = f"kappa {self.kappa:.3g}, " if self.needs_ref else "no pull to the base, "
            anchor = f"anchored: {pull}w {self.weight:.3g}, limit eta0 {self.eta0:g}"
        if self.kind == "policy" and self.step_law == "nft" and online:  # docs/measured/anchor.md
            anchor += " (first order: rewards of 0 or 1 may end a quarter off, above 2 far off; step_law odds keeps it)"
        return (
            f"objective {self.kind}{what}: tilt {self.tilt:g} a round (beta {2 / self.tilt:g}); {anchor}; "
            f"{reached:.3g} after {rounds} converged round{'s' * (rounds != 1)}; {cost}"
        )
