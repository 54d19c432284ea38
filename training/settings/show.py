"""What a run shows while it goes, and how it measures itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from nft_pipeline.checks import Check, flag, number, optional, whole

from .section import MAY_CHANGE, TEXT, TEXT_OR_EMPTY, Section, texts

TRACKERS = ("wandb", "trackio")


def _are_strengths(value: Any) -> bool:
    right = isinstance(value, list) and all(number(0, 100).holds(strength) for strength in value)
    return right and 0 in value and len(set(value)) == len(value) > 1


def _are_trackers(value: Any) -> bool:
    return isinstance(value, list) and all(entry in TRACKERS for entry in value) and len(set(value)) == len(value)


def _are_rewards(value: Any) -> bool:
    return isinstance(value, list) and all(TEXT.holds(name) for name in value) and len(set(value)) == len(value)


_REWARDS = Check(_are_rewards, "a list of different rewards, or [] for none")
_STRENGTHS = Check(_are_strengths, "a list of different strengths from 0 on, 0 and at least one other")
_TRACKERS = Check(_are_trackers, f"a list of {' and '.join(TRACKERS)}, or [] for TensorBoard alone")


@dataclass(frozen=True, kw_only=True)
class ShowSettings(Section):
    """What the run shows.

    Sample grids while the run goes on, and sweeps, which draw held-out prompts at several strengths and measure them.
    None of it changes what is learned.
    """

    samples_every: Annotated[int, whole(0), MAY_CHANGE] = 100
    """Optimiser steps between sample grids in OUT/samples; 0 draws none.

    Lower it to watch closely. Raise it, or set it to 0, when sampling is slow: a grid draws four prompts at four
    strengths.
    """

    sample_prompts: Annotated[
        list[str], texts("a list of prompts, or [] for some of the held-out ones"), MAY_CHANGE
    ] = field(default_factory=list)
    """Prompts of the sample grids; [] takes four of the held-out ones.

    Set it to the prompts that you care about and know well from the base model.
    """

    sweep_size: Annotated[int, whole(0), MAY_CHANGE] = 128
    """Held-out pictures per strength in a sweep, which measures reward, hacking and the strength to recommend; 0 makes
    no sweep.

    Raise it, to 200 and more, to tell small effects from chance. Lower it when sampling is slow.
    """

    sweep_strengths: Annotated[list[float], _STRENGTHS, MAY_CHANGE] = field(
        default_factory=lambda: [0.0, 0.5, 1.0, 1.5, 2.0]
    )
    """Strengths that a sweep draws at, from 0 to 100. 0, the base model, has to be among them, and the strength to
    recommend is chosen from the others.

    Add larger ones when the largest is still the best. Leave some out when sampling is slow.
    """

    sweep_steps: Annotated[int | None, optional(whole(1)), MAY_CHANGE] = None
    """Denoising steps of the pictures in sweeps and sample grids. Left out, it is pool_steps, as the run draws what it
    learns from.

    Set it to the number that you will draw with, where the run samples with fewer to save time: DiffusionNFT's authors
    sample with 10 and measure with 40. The dial is calibrated at pool_steps.
    """

    sweep_every: Annotated[int, whole(0), MAY_CHANGE] = 0
    """Rounds between the sweeps of an online run; 0 makes one sweep, at the end. An offline run always makes one.

    Set it in long online runs: a reward that rises by a trick shows here first, and keep_best compares these sweeps.
    """

    calibration_pictures: Annotated[int | None, optional(whole(0)), MAY_CHANGE] = None
    """Held-out pictures that are drawn when the run is done, to find out what each setting of the dial does; 0 leaves
    the dial uncalibrated.

    By default it is as many as cost a tenth of the run's forwards, at most 4800; a run too small for 240 is not
    calibrated. Raise it for a narrower promise, lower it when sampling or the reward is slow, and calibrate later with
    `diffusion-nft calibrate`.
    """

    watch_reward: Annotated[str, TEXT_OR_EMPTY, MAY_CHANGE] = ""
    """A reward that sweeps measure and nothing trains on, named as `reward` is; "" is none. If it falls while the
    trained reward rises, the run has found a trick.

    Set it whenever you have a second opinion on the pictures: with it the hacking watch can be sure, and without it you
    are to judge.
    """

    sweep_rewards: Annotated[list[str], _REWARDS, MAY_CHANGE] = field(default_factory=list)
    """More rewards that sweeps measure and nothing trains on, named as `reward` is; [] is none. They stand in the
    records, the report and the card, and the hacking watch does not read them.

    Set it to what you will be compared on, such as [pickscore, hps_v2] in a run that trains on ocr. The one that is to
    warn of a trick is watch_reward.
    """

    stop_when_hacked: Annotated[bool, flag(), MAY_CHANGE] = False
    """Whether an online run ends at the sweep that says "seen" of reward hacking, with the adapter as it is then; with
    keep_best the one of the best sweep is there as well.

    Set it to true in runs that nobody watches. It needs sweep_every above 0, and a watch_reward to be seen by.
    """

    trackers: Annotated[list[str], _TRACKERS, MAY_CHANGE] = field(default_factory=list)
    """Services that get the same numbers as TensorBoard does: wandb, trackio, or both.

    Add the one that you use, and install its package first.
    """
