"""What is learned from scored pictures, and which numbers of it go together. The losses are training/learn's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from nft_pipeline.checks import choice, flag, number, optional

from .choices import BASELINES, KINDS, STEP_LAWS, Baseline, Kind, StepLaw
from .section import Section


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings(Section):
    """The objective.

    What the LoRA becomes. v_old is the base model's velocity, v_plus that of the pictures the reward likes, and alpha
    the probability that a noisy picture ends as one it likes; docs/theory.md has the formulas.
    """

    objective: Annotated[Kind | None, optional(choice(*KINDS))] = None
    """What is learned. positive: the LoRA becomes v_plus, and a head learns alpha beside it. policy: the LoRA becomes
    v_old with the tilt built in, by regression. paper: the same by the loss of DiffusionNFT's authors. Left
    out, it is positive where the pictures are the base model's own, offline, and policy otherwise.

    Choose positive for a dial that can be turned both ways after training, policy for online runs and foreign
    pictures, and paper to compare with the authors' method.
    """

    tilt: Annotated[float, number(above=0)] = 2.0
    """The tilt lambda = 2/beta: the odds of a liked picture are meant to be multiplied by e to the power of it. Of a
    positive run it only says what strength 1 will mean; of the others it is what one converged round adds.

    Raise it when strength 1 looks weak, and lower it when strength 1 looks overdone or when a policy becomes unsteady.
    """

    baseline: Annotated[Baseline, choice(*BASELINES)] = "alpha"
    """What a policy's r is compared with: half (1/2, as DiffusionNFT has it), mean (the mean of r), or alpha (a head's
    estimate at each noisy picture, trained along).

    Keep alpha where the pictures were not made by the base model or where r is not 1/2 in the mean. Choose half or
    mean to do without the head. Other objectives do not read it.
    """

    eta0: Annotated[float | None, optional(number(above=0))] = None
    """Of a policy, the tilt that its anchor to the base model lets the rounds converge to, whatever `tilt` is. Left
    out, there is no anchor, and the tilt grows with every round.

    Set it in long online runs, and lower it when pictures drift or lose variety. Online it costs one more forward per
    sample. With rewards of 0 or 1 the rounds may end far from an eta0 above 2. With step_law odds they do not, and
    need no such forward.
    """

    step_law: Annotated[StepLaw, choice(*STEP_LAWS)] = "nft"
    """By which law a policy takes a round's tilt in. nft adds the tilt times Delta, to first order, and an anchor pulls
    to the base model. odds weighs the pictures of the round by 1 + (e^tilt - 1) r. With rewards of 0 or 1 this is exact
    at every tilt, and with eta0 each round then adds just what is left of the way to eta0, without a pull.

    Choose odds for rewards of 0 or 1 (optimality likes or threshold) when the tilt that the run says is to be the one
    that it reaches. It needs baseline alpha. Keep nft for graded rewards, for a tilt above 4, and where the pull to the
    base model matters more than the number.
    """

    refit: Annotated[float, number(0, 1)] = 0.0
    """Of a policy, the share of the old model's own error that a converged round takes out. 0 leaves that error alone,
    and it adds up over the rounds.

    Raise it, to 0.05 or 0.1, when the loss grows over the rounds. Lower it when pictures of one prompt become alike.
    """

    self_normalise: Annotated[bool, flag()] = False
    """Whether a policy's samples weigh as in the authors' loss, so that pictures which the old model misses by far pull
    no harder than others.

    Set it to true in online runs with optimality rank or group, which it makes a little faster. Leave it false offline:
    there it moves the optimum and gains nothing.
    """

    authors_trainer: Annotated[bool, flag()] = False
    """Whether a run with objective paper also does the rest as the trainer of DiffusionNFT's authors does. It samples
    by their second-order solver, keeps the pictures in 32 bits, trains on each of them at nine tenths of the sampler's
    own noise levels, gives the LoRA an alpha of twice its rank, and adds their velocity KL to the base model with
    weight 0.0001. It sums the raw scores of several rewards before it normalises them, takes equal prompts of a round
    as one group, averages the weights by their rule with decay 0.9, and runs AdamW with their betas and without a
    warm-up.

    Set it to true to compare with published runs; the preset paper has it, with their numbers for the other settings.
    It needs rounds, optimality group and a flow model, does not read ema and noise_shift, and costs one more forward
    per sample. To go through each round once, as they do, batch has to be round_prompts times group_size times the
    levels (9 of 10 pool_steps), divided by round_steps.
    """


def objective_faults(settings: ObjectiveSettings, kind: Kind) -> list[str]:
    """Numbers of an objective that are sound one by one and do not go together, one sentence each.

    Args:
        settings: those of the objective.
        kind: the objective of the run, chosen or found.
    """
    faults = []
    if settings.authors_trainer and kind != "paper":
        faults.append(f"authors_trainer with objective {kind!r}: the authors' trainer has objective 'paper'")
    if kind == "policy":
        if settings.step_law == "odds" and settings.baseline != "alpha":
            faults.append(
                f"step_law is 'odds' with baseline {settings.baseline!r}: it reads alpha, so set baseline: alpha"
            )
        return faults
    if settings.step_law == "odds":
        faults.append(f"step_law is 'odds' with objective {kind!r}; it belongs to 'policy'")
    if settings.eta0 is not None:
        faults.append(f"eta0 is {settings.eta0:g} with objective {kind!r}: the anchor belongs to 'policy'")
    if settings.refit:
        faults.append(f"refit is {settings.refit:g} with objective {kind!r}: it belongs to 'policy'")
    if settings.self_normalise:
        faults.append(f"self_normalise with objective {kind!r}; it belongs to 'policy', and 'paper' always is")
    return faults
