"""Calibrates an adapter that exists already: anybody's, on its own base model, with a reward and held-out prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from nft_pipeline.adapter import Adapter, AdapterConfig
from nft_pipeline.dial.measured import Dial, TiltMap
from nft_pipeline.dial.promise import tilt_at_weight
from nft_pipeline.guidance import beta_from_tilt

from ..bases.registry import train_base
from ..devices.precision import choose_precision
from ..rewards.find import Scorer
from ..settings.choices import Method, Mix
from ..settings.public import public_names
from .calibrate import Calibrated, Settings, calibrate
from .draws import Draws
from .judges import AlphaJudge, RewardJudge

LEAST_TILT = 1e-3


@dataclass(frozen=True)
class Judging:
    """Who judges, and how scores become r.

    Args:
        rewards: by name; none lets the adapter's own head judge.
        weights: of each, by name; missing ones are 1.
        method: the `optimality` of the run that the rewards belong to; "raw" for rewards that give r themselves.
        at: for "threshold".
        watch: a reward that was not trained on, which helps to choose between ways of drawing.
        mix: how several r become one.
    """

    rewards: Mapping[str, Scorer]
    weights: Mapping[str, float]
    method: Method = "raw"
    at: float | None = None
    watch: Scorer | None = None
    mix: Mix = "mean"


def calibrate_adapter(
    pipe: Any,
    name: str,
    prompts: Sequence[str],
    judging: Judging,
    *,
    pictures: int = 2400,
    seed: int = 0,
    batch: int = 64,
    call: Mapping[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Adapter, Calibrated]:
    """The adapter with its dial, and what was found.

    Args:
        pipe: a guided pipeline with the adapter loaded.
        name: the adapter's name there.
        prompts: to draw, none of them trained on.
        judging: who judges.
        pictures: how many to draw, a picture in two passes counting twice.
        seed: of their noise.
        batch: pictures drawn at once.
        call: further arguments of the pipeline's call, such as num_inference_steps and guidance_scale.
        stop: asked between batches whether to stop.

    Raises:
        Interrupted: it was asked to stop.
        RewardError: a reward failed.
    """
    draws = draws_of(pipe, name, prompts, batch, call, stop)
    if judging.rewards:
        judge: Any = RewardJudge(draws.texts, judging.rewards, judging.weights, judging.method, judging.at, judging.mix)
        judged_by, judge_name = "reward", ", ".join(public_names(judging.rewards).values())
    else:
        judge, judged_by, judge_name = AlphaJudge(draws), "alpha", "the alpha head, at low noise"
    watch = None if judging.watch is None else RewardJudge(draws.texts, {"watched": judging.watch}, {})
    with torch.inference_mode():
        found = calibrate(draws, judge, Settings(pictures, judged_by, judge_name[:200], seed), watch)
    adapter = pipe.nft_adapters[name]
    return replace(adapter, config=with_dial(adapter.config, found.dial)), found


def draws_of(
    pipe: Any,
    name: str,
    prompts: Sequence[str],
    batch: int = 64,
    call: Mapping[str, Any] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Draws:
    """What draws an adapter that a guided pipeline has loaded; arguments as `calibrate_adapter`."""
    device = next(getattr(pipe, pipe.nft_adapters[name].config.component).parameters()).device
    dtype, _ = choose_precision("auto", device)
    base = train_base(pipe, {**pipe.call_defaults, **(call or {})}, dtype)
    return Draws(base, name, list(prompts), base.encode_prompts(list(prompts)), base.encode_empty(), batch, stop)


def with_dial(config: AdapterConfig, dial: Dial) -> AdapterConfig:
    """The config with a dial: maps of other guidance scales that it had are kept, and a policy's tilt is the measured
    one.

    For a policy the tilt of weight 1, by the first map, becomes the tilt of strength 1, so that strength 1 goes on
    being the LoRA as its author made it, unless more than a smaller weight makes fewer pictures liked.
    """
    kept: list[TiltMap] = []
    if config.dial is not None:
        measured = {(entry.mode, entry.guidance_scale, entry.guide) for entry in dial.maps}
        kept = [entry for entry in config.dial.maps if (entry.mode, entry.guidance_scale, entry.guide) not in measured]
    own_scale = config.guidance_scale if config.dial is None else config.dial.own.guidance_scale
    if kept and dial.own.guidance_scale != own_scale:
        assert config.dial is not None
        # Another guidance scale is an addition: the adapter's own way stays what it was.
        return replace(config, dial=replace(config.dial, maps=(*kept, *dial.maps)))
    dial = replace(dial, maps=(*dial.maps, *kept))
    if config.kind == "positive":
        return replace(config, dial=dial)
    tilt = max(tilt_at_weight(dial.own, 1.0), LEAST_TILT)
    return replace(config, dial=dial, tilt=tilt, beta=beta_from_tilt(tilt))
