"""From what a person set on a node to a guided MODEL: every value checked, the adapter matched, then attached."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nft_pipeline import modes
from nft_pipeline.adapters.config import AdapterConfig
from nft_pipeline.dial.tilts import tilt_of
from nft_pipeline.errors import GuidanceError
from nft_pipeline.settings import GuidanceSettings

from . import host
from .curve import Points
from .dial import mode_in_words, settings_for_rate, tilt_of_rate
from .guide import Guide
from .match import match_layers, tap_in_comfyui
from .reward_file import RewardFile, describe, needed_base, read_reward_file
from .run import Plan
from .words.cautions import LOADED_TWICE

AUTO = "auto"  # the law and the mode that the adapter's calibration found best
MODES = {mode.node: name for name, mode in modes.MODES.items() if mode.node is not None}  # "exact", "fast"


def make_plan(
    reward: RewardFile,
    *,
    strength: float,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    law: str = AUTO,
    mode: str = AUTO,
    beta: float = 0.0,
    cap: float = 0.0,
    guide: str = "both",
    schedule: Points = (),
    rate: float = 0.0,
    guidance_scale: float | None = None,
) -> Plan:
    """A checked plan. Arguments as on the node; beta 0, cap 0 and rate 0 are off.

    `guidance_scale` is the CFG where it is known before sampling, else None.

    Raises:
        GuidanceError: a value out of range, or one that another one or this adapter rules out.
    """
    for name, value in (("strength", strength), ("beta", beta), ("cap", cap), ("rate", rate)):
        if not math.isfinite(value):
            raise GuidanceError(f"{name} is {value}, expected a finite number")
    if not 0 <= start_percent < end_percent <= 1:
        raise GuidanceError(
            f"start_percent is {start_percent:g} and end_percent {end_percent:g}, expected 0 <= start < end <= 1: the "
            "share of the sampling where guidance begins and ends, 0 being the first step"
        )
    if mode not in (AUTO, *MODES):
        raise GuidanceError(f"mode is {mode!r}, expected one of {', '.join(map(repr, (AUTO, *MODES)))}")
    if mode == "fast" and guide != "both":
        raise GuidanceError(
            'mode "fast" guides both predictions of classifier-free guidance; set guide to "both", or mode to "auto"'
        )
    if beta < 0 or cap < 0:
        raise GuidanceError(f"beta is {beta:g} and cap {cap:g}, expected 0 (off) or above")
    if beta and reward.form is not None:
        raise GuidanceError(
            f"beta is {beta:g}, but {reward.config.name} does not record the beta it was trained with, so nothing "
            "can be said in betas. Set beta to 0 and use strength."
        )
    if beta and strength != 1:
        raise GuidanceError(
            f"beta is {beta:g} and strength {strength:g}, but they set the same thing (beta {reward.config.beta:g} is "
            "strength 1 here). Leave strength at 1, or set beta to 0."
        )
    if rate and (beta or strength != 1):
        other = f"beta is {beta:g}" if beta else f"strength is {strength:g}"
        raise GuidanceError(
            f"rate is {rate:g} and {other}, but a rate finds the strength itself. Set rate to 0, or leave strength at "
            "1 and beta at 0."
        )
    # One pass would guide the negative prediction too.
    own_mode = MODES["exact"] if guide != "both" else None
    settings = GuidanceSettings.of_call(
        [reward.config],
        law=None if law == AUTO else law,
        mode=own_mode if mode == AUTO else MODES[mode],
        cap=cap or None,
        guide=guide,
        guidance_scale=guidance_scale,
    )
    if rate:
        settings = settings_for_rate(reward.config, rate, settings)
        tilt = tilt_of_rate(reward.config, rate, settings)
    else:
        tilt = tilt_of(reward.config, beta=beta) if beta else tilt_of(reward.config, strength)
    settings = settings.for_tilts({"": reward.config}, {"": tilt})
    return Plan(tilt, settings, start_percent, end_percent, schedule, rate)


def guide_model(model: Any, reward: RewardFile, node_id: str | None, **values: Any) -> tuple[Any, str]:
    """A guided clone of a MODEL, and what can be said about it.

    Args:
        model: ComfyUI's MODEL.
        reward: the adapter.
        node_id: of the node, for the live text.
        **values: see `make_plan`.

    Raises:
        AdapterError: the adapter is for another base model.
        GuidanceError: as `make_plan`; or nobody knows where to read what its head reads.
    """
    return _attached(model, reward, node_id, make_plan(reward, **values))


@dataclass(frozen=True)
class Guided:
    """A guided clone of a MODEL for batches whose pictures have strengths of their own.

    Args:
        at: at(strengths, pictures) is the clone, the next run of which has so many pictures at the first of these
            strengths, then as many at the second, and so on. Strengths of several modes are drawn in that of the
            furthest.
        modes: in which each strength is drawn, where it is alone.
    """

    at: Callable[[Sequence[float], int], Any]
    modes: Mapping[float, str]


def guide_each(
    model: Any, reward: RewardFile, node_id: str | None, strengths: Sequence[float], **values: Any
) -> Guided:
    """A guided clone of a MODEL for batches whose pictures have strengths of their own.

    Args:
        model: ComfyUI's MODEL.
        reward: the adapter.
        node_id: of the node, for the live text.
        strengths: all that will be asked for.
        **values: see `make_plan`, without a strength, a beta or a rate.

    Raises:
        AdapterError, GuidanceError: as `guide_model`.
    """
    plans = {strength: make_plan(reward, strength=strength, **values) for strength in strengths}
    first = next(iter(plans.values()))
    guided, _ = _attached(model, reward, node_id, _at([plan.tilt for plan in plans.values()], first, reward.config))
    guide = host.guides_of(guided)[-1]

    def at(of_batch: Sequence[float], pictures: int) -> Any:
        tilts = [plans[strength].tilt for strength in of_batch for _ in range(pictures)]
        guide.plan = _at(tilts, first, reward.config)
        return guided

    return Guided(at, {strength: plan.settings.mode for strength, plan in plans.items()})


def _at(tilts: Sequence[Any], plan: Plan, config: AdapterConfig) -> Plan:
    """The plan at these tilts, one for each picture, or at the one that they are."""
    tilt = tuple(tilts) if len(set(tilts)) > 1 else tilts[0]
    return replace(plan, tilt=tilt, settings=plan.settings.for_tilts({"": config}, {"": tilt}))


def _attached(model: Any, reward: RewardFile, node_id: str | None, plan: Plan) -> tuple[Any, str]:
    loaded = f"a {host.name_of(model)} model"
    targets = match_layers(
        reward.layers,
        host.key_map(model),
        model.model,
        shown=f"the adapter {reward.config.name!r}",
        needs=needed_base(reward),
        loaded=loaded,
    )
    tap = tap_in_comfyui(reward, model.model)
    lines = [describe(reward), f"{len(targets)} of {len(reward.layers)} LoRA layers active on {loaded}"]
    if tap is not None:
        lines.append(f"alpha is read at the input of {tap}")
    by_map = plan.settings.map_for(reward.config) is not None
    way = "by what was measured" if by_map else f"law {plan.settings.law_for(reward.config)}"
    each = plan.tilt if isinstance(plan.tilt, tuple) else (plan.tilt,)
    tilts = ", ".join(f"{tilt:g}" for tilt in dict.fromkeys(each))
    lines.append(f"{way}, tilt {tilts}, mode {mode_in_words(plan.settings.mode)}")
    guide = Guide(reward, targets, plan, host.ComfyUI(), tap=tap, node_id=node_id)
    guided = host.attach(model, guide)
    cautions = guide.cautions(guided)
    if LOADED_TWICE in cautions:
        lines.append(LOADED_TWICE.text)
        host.warn(LOADED_TWICE.text)
    promised = guide.promised(plan.tilt, plan.settings)
    if promised:
        lines.append(promised)
    guide.say_before(plan.tilt, plan.settings, cautions)
    return guided, "\n".join(lines)


def load_reward_file(name: str, kind: str = "auto", text_encoder: str = "refuse") -> RewardFile:
    """A file of models/loras, by its name there. Arguments and errors as `read_reward_file`."""
    return read_file(host.adapter_path(name), kind, text_encoder)


def read_file(path: str | os.PathLike[str], kind: str = "auto", text_encoder: str = "refuse") -> RewardFile:
    """A file, of which ComfyUI is asked first what its keys mean. Arguments and errors as `read_reward_file`."""
    return read_reward_file(path, kind, text_encoder, host.convert_lora)


def parse_strengths(text: str) -> list[float]:
    """Numbers with commas between.

    Raises:
        GuidanceError: none, or something that is no finite number.
    """
    values = []
    for part in (part.strip() for part in text.replace("\n", ",").split(",")):
        if not part:
            continue
        try:
            value = float(part)
        except ValueError:
            value = float("nan")
        if not abs(value) < float("inf"):
            raise GuidanceError(f"{part!r} in strengths is no finite number, expected some such as 0, 0.5, 1")
        values.append(value)
    if not values:
        raise GuidanceError("strengths is empty, expected numbers with commas between, such as 0, 0.5, 1")
    return values
