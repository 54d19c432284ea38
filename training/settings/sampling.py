"""How a run samples the pictures it learns from: once for an offline run, in every round of an online one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final

from nft_pipeline.checks import Check, number, optional, whole

from .choices import SCHEDULES
from .section import MAY_CHANGE, TEXT_OR_EMPTY, Section

PROMPT_PLACE: Final = "{prompt}"  # in a wording, where the prompt goes
_DECAY = number(0, below=1)
_FOLLOWING = Check(
    lambda value: value in SCHEDULES if isinstance(value, str) else _DECAY.holds(value),
    f"{', '.join(SCHEDULES)}, or {_DECAY.expected}",
)
_WORDINGS = Check(
    lambda value: isinstance(value, list) and all(isinstance(v, str) and v.count(PROMPT_PLACE) == 1 for v in value),
    f"a list of texts with one {PROMPT_PLACE} in each, or [] for the prompt alone",
)


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(Section):
    """Sampling.

    How pictures are sampled. An offline run samples a pool of pictures once; an online run samples in every round, and
    of this section pool_size, pool_wordings and held_out_size do not concern it.
    """

    pool_size: Annotated[int, whole(1)] = 4096
    """Pictures that an offline run samples from the base model and scores before it trains.

    Raise it when the reward hardly moves or when alpha is poor at high noise: a few hundred pictures show a preference
    on style, thousands one on content. Sampling takes time in proportion.
    """

    pool_wordings: Annotated[list[str], _WORDINGS] = field(default_factory=list)
    """How the pool's pictures are asked for, in turn: texts with {prompt} in them, such as ["a sketch of {prompt}", "a
    photo of {prompt}"]. They are scored and learned under the prompt alone. [] asks for the prompt alone.

    Set it where the reward likes something that prompts leave open and could name: what is named is drawn clearly,
    while of pictures that leave it open many are neither the one nor the other, and an adapter that learned from these
    went half as far. Name what is liked in about a third of the wordings, and what is not in the rest. What the pool
    then says of alpha and of the base rate is true of this mixture. So have the run calibrated, which draws the prompts
    as they are: without a calibration the adapter promises from the mixture's rate.
    """

    pool_steps: Annotated[int, whole(1)] = 14
    """Denoising steps per sampled picture.

    Raise it until the base model's pictures look right; most models need 20 to 30, and distilled ones 4 to 8. Lower it
    when sampling takes too long, at the price of rougher pictures.
    """

    pool_batch: Annotated[int, whole(1), MAY_CHANGE] = 256
    """Pictures that are sampled, or read by the alpha head, at once. Where memory runs out it is halved until they fit;
    the result stays the same but for rounding.

    Raise it as far as memory goes for speed. Lower it where a GPU begins to use the computer's memory, which is slow,
    instead of running out.
    """

    held_out_size: Annotated[int, whole(1)] = 768
    """Pictures that an offline positive run samples besides and never trains on, to measure how well alpha predicts.

    Raise it when the errors of the calibration table are too wide to tell anything. Lower it when sampling is slow;
    below a hundred the table says little. Of a folder of 400 pictures and more every tenth is held out instead, and
    with fewer the head is cross-validated.
    """

    guidance_scale: Annotated[float, number(above=0)] = 1.0
    """Scale of classifier-free guidance while sampling; 1 is without. For FLUX.1 and FLUX.2, which are distilled, it is
    the model's own input.

    Keep it at 1 where pictures without guidance can be judged at all, because the adapter learns the guidance along.
    Raise it where they cannot, as with SD 1.5 and SDXL; for a distilled model set what you draw with.
    """

    negative_prompt: Annotated[str, TEXT_OR_EMPTY] = ""
    """What classifier-free guidance leads away from, in everything that the run draws; "" is the empty prompt. It is
    read with a guidance_scale above 1 alone.

    Set it to the one that you draw with, such as "blurry, low quality" for SD 1.5 and SDXL, so that the run learns from
    pictures like yours. Leave it out for models that need none.
    """

    resolution: Annotated[int | None, optional(whole(8))] = None
    """Edge of the sampled, square pictures in pixels, rounded down to what the model can draw. Left out, it is the
    model's own size.

    Lower it when memory or time is short. Stay near a size that the base model draws well, and near the one that you
    will draw at.
    """

    num_frames: Annotated[int | None, optional(whole(1))] = None
    """Frames of a sampled video, for Wan only. Left out, it is 1, which is a picture.

    Raise it to train on short videos, of which rewards see the middle frame. Memory grows with it.
    """


@dataclass(frozen=True, kw_only=True)
class RoundSettings(Section):
    """Online rounds.

    With rounds above 0 the run is online: in every round the old model samples pictures, they are scored, the policy
    takes a few steps on them, and the old model follows it.
    """

    rounds: Annotated[int, whole(0)] = 0
    """Rounds of an online run; 0 is an offline run.

    Set it when the base model hardly ever earns the reward, or when an offline run has gone as far as its pool goes.
    Hundreds of rounds are usual; raise it as long as the held-out reward still rises.
    """

    round_prompts: Annotated[int, whole(1)] = 48
    """Prompts per round. A round samples round_prompts times group_size pictures.

    Raise it when the reward jumps up and down from round to round. Lower it when a round takes too long.
    """

    group_size: Annotated[int, whole(2)] = 24
    """Pictures per prompt in a round, which optimality group and rank compare with each other.

    Raise it when many groups are reported as all alike. Lower it, down to 2, with optimality raw, and give the time to
    more prompts.
    """

    round_steps: Annotated[int, whole(1)] = 2
    """Optimiser steps per round.

    Raise it to make more of each round's pictures when sampling or the reward is slow. Lower it when training becomes
    unsteady: the pictures are the old model's, and the further the policy moves from it the less they say.
    """

    old: Annotated[str | float, _FOLLOWING] = "copy"
    """How the old model follows the policy after a round: copy takes its weights, a number d from 0 to below 1 keeps
    the share d of the old ones (a running average), and ramp and late_ramp are the schedules of DiffusionNFT's authors,
    whose d grows with the steps.

    Choose a number such as 0.9, or a schedule, when training is unsteady with copy; all of them are slower and
    steadier.
    """

    @property
    def online(self) -> bool:
        """Whether the run samples anew in every round."""
        return self.rounds > 0
