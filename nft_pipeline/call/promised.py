"""What a call will do, said before it is made; for a prompt, by the prompt's own base rate.

At pure noise alpha is E[r | prompt], the chance that the base model draws something liked for this prompt, and its mean
stays the same from step to step (M12). So the first steps of a few calls are enough, and they are stopped there. The
very first alone would be cheaper, but a head tells prompts apart better where there is something to see. A tilt that
changes no picture lets the head read alpha, and in one pass, so that a step costs one forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm

from ..adapters.config import AdapterConfig
from ..dial.promise import Promise, promise
from ..dial.scale import BARELY, mended
from ..errors import GuidanceError
from ..settings import GuidanceSettings
from .forwards import before_each_forward
from .guided_call import guidance_scale_of

NOISES = 16  # at most, for all prompts together, and at least AT_ONCE for each
AT_ONCE = 4
STEPS = 4


class _Enough(Exception):
    """Alpha was read, and the call has nothing more to do."""


def promised(
    pipe: Any,
    prompt: str | Sequence[str] | None,
    strength: float,
    rate: float | Sequence[float] | None,
    mode: str | None,
    guidance_scale: float | None,
) -> Promise:
    """As `DiffusionNFTPipeline.promise`."""
    config = pipe.nft_config
    if config is None:
        raise GuidanceError("no adapter is loaded, so there is nothing to promise. Call load_nft_adapter(...) first.")
    if prompt is not None and rate is not None:
        raise GuidanceError(
            f"prompt={prompt!r} and rate={rate!r} were both given, but the prompt's base rate is read off the model. "
            "Give one of them."
        )
    if guidance_scale is None:
        guidance_scale = guidance_scale_of(pipe._nft_stock_class, (), pipe.call_defaults)
    GuidanceSettings.of_call([config], mode=mode, guidance_scale=guidance_scale)  # refuses what a call refuses
    if prompt is not None:
        rate = prompt_rates(pipe, [prompt] if isinstance(prompt, str) else prompt, guidance_scale)
    return promise(config, strength, rate=rate, mode=mode, guidance_scale=guidance_scale)


def prompt_rates(
    pipe: Any,
    prompts: Sequence[str],
    guidance_scale: float | None = None,
    noises: int = NOISES,
    progress: bool = False,
    **stock: Any,
) -> list[float]:
    """The share of liked pictures that the base model draws for each prompt: the mean of alpha over a few noises after
    the first steps, mended by the calibration where there is one.

    Args:
        pipe: a guided pipeline with one adapter.
        prompts: at least one.
        guidance_scale: that will be drawn with. alpha is about the scale of the calibration; where a map of another
            scale has another base rate, the log-odds of each prompt are moved by as much.
        noises: for all prompts together, at most `NOISES`; each prompt has a multiple of `AT_ONCE`, and at least that.
            Who draws but few pictures need not read more than they draw.
        progress: whether to show a bar while it reads; a large model takes a while on a CPU.
        stock: arguments of the stock call that will be drawn with, such as its width and steps.

    Raises:
        GuidanceError: the adapter has no alpha head, or there is no prompt.
    """
    config = pipe.nft_config
    if not prompts:
        raise GuidanceError("prompt is an empty list, expected at least one prompt; leave it out for the mean of all.")
    if next(iter(pipe.nft_adapters.values())).head is None:
        raise GuidanceError(
            f"{config.name!r} is a {config.kind} adapter, which has no alpha head that could read the base rate of the "
            "prompt. Leave the prompt out for the mean over the prompts of its calibration, or give rate=."
        )
    each = max(AT_ONCE, min(noises, NOISES) // len(prompts))
    seeds = range(0, each, AT_ONCE)
    with tqdm(total=len(prompts) * len(seeds), desc="reading alpha", leave=False, disable=not progress) as bar:
        return [_prompt_rate(pipe, config, prompt, seeds, guidance_scale, stock, bar) for prompt in prompts]


def _prompt_rate(
    pipe: Any,
    config: AdapterConfig,
    prompt: str,
    seeds: Sequence[int],
    guidance_scale: float | None,
    stock: Mapping[str, Any],
    bar: tqdm[Any],
) -> float:
    readings = []
    for seed in seeds:
        readings.append(_first_alphas(pipe, config, prompt, seed, stock))
        bar.update()
    alpha, level = (torch.cat(parts) for parts in zip(*readings, strict=True))
    dial = config.dial
    rate = (alpha if dial is None else mended(dial, alpha, level)).mean().clamp(1e-4, 1 - 1e-4)
    tilt_map = None if dial is None else dial.map_for(None, guidance_scale)
    if dial is not None and tilt_map is not None:
        ours, theirs = (torch.tensor(p).clamp(1e-4, 1 - 1e-4).logit() for p in (dial.rate, tilt_map.base))
        rate = (rate.logit() + theirs - ours).sigmoid()
    return float(rate)


def _first_alphas(
    pipe: Any, config: AdapterConfig, prompt: str, seed: int, stock: Mapping[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and noise level of `AT_ONCE` pictures after `STEPS` steps, each (samples,)."""
    stats, bar = pipe.nft_stats, getattr(pipe, "_progress_bar_config", {})

    def stop_early() -> None:
        if pipe._nft_running is not None and pipe._nft_running.trace.recorder.steps >= STEPS:
            raise _Enough

    pipe._progress_bar_config = {**bar, "disable": True}
    try:
        with before_each_forward(pipe, stop_early):
            pipe(
                prompt=[prompt] * AT_ONCE,
                generator=[torch.Generator("cpu").manual_seed(seed + place) for place in range(AT_ONCE)],
                output_type="latent",
                nft_strength=BARELY / config.tilt,
                nft_mode="single",
                **stock,
            )
    except _Enough:
        pass
    finally:
        pipe._progress_bar_config = bar
        first, pipe.nft_stats = pipe.nft_stats, stats
    return first.alpha[:STEPS][-1], first.noise_level[:STEPS][-1]
