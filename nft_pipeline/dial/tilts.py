"""The tilts of a call: from a person's strength, beta or rate, one number for all pictures or one for each.

A strip of strengths is one batch: nft_strength=[0, 0.5, 1, 2] with four pictures. Numbers may be Python's, numpy's or
torch's, and lists of them 1-d arrays.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from .. import guidance
from ..adapters.config import AdapterConfig
from ..checks import did_you_mean, is_number, listed
from ..errors import GuidanceError
from ..laws import COMBINATIONS
from .promise import tilt_for_rate

Tilt = float | tuple[float, ...]  # for all samples of a call, or one for each


def tilt_of(config: AdapterConfig, strength: float | None = None, beta: float | None = None) -> float:
    """The tilt lambda that a strength or a beta stands for.

    Args:
        config: the adapter's.
        strength: 0 is the base, 1 (default) as the author shipped it; any finite number, linear in the tilt.
        beta: an absolute beta instead of a strength, tilt = 2 / beta.

    Raises:
        GuidanceError: both were given, or a value out of range.
    """
    if strength is not None and beta is not None:
        raise GuidanceError(
            f"nft_strength={strength} and nft_beta={beta} were both given, but they set the same thing "
            f"(beta = {2 / config.tilt:g} is strength 1 here). Give one of them."
        )
    if beta is not None:
        if not is_number(beta) or not math.isfinite(beta) or beta <= 0:
            raise GuidanceError(
                f"nft_beta is {beta!r}, expected a finite number above 0 (tilt = 2 / beta). For no guidance or a "
                "negative one use nft_strength, 0 or below."
            )
        return guidance.tilt_from_beta(float(beta))
    strength = 1.0 if strength is None else strength
    if not is_number(strength) or not math.isfinite(strength):
        raise GuidanceError(
            f"nft_strength is {strength!r}, expected a finite number: 0 is the base model, 1 the adapter as shipped."
        )
    return guidance.tilt_from_strength(float(strength), config.tilt)


def tilts_of(configs: Mapping[str, AdapterConfig], strength: Any = None, beta: Any = None) -> dict[str, Tilt]:
    """A tilt for every loaded adapter.

    Args:
        configs: of the loaded adapters, by name.
        strength: one number for all of them or one for each sample, or a mapping {name: either}; adapters it does not
            name are at 0.
        beta: the same for beta.

    Raises:
        GuidanceError: as `tilt_of`; a list without numbers; or a name that is not loaded.
    """
    for argument, value in (("nft_strength", strength), ("nft_beta", beta)):
        if isinstance(value, Mapping):
            check_names(argument, value, configs)
    if isinstance(strength, Mapping) and isinstance(beta, Mapping) and strength.keys() & beta.keys():
        both = sorted(strength.keys() & beta.keys())[0]
        tilt_of(configs[both], strength[both], beta[both])
    tilts: dict[str, Tilt] = {}
    for name, config in configs.items():
        own_strength = strength.get(name) if isinstance(strength, Mapping) else strength
        own_beta = beta.get(name) if isinstance(beta, Mapping) else beta
        if own_strength is None and own_beta is None and (strength is not None or beta is not None):
            tilts[name] = 0.0
        elif own_beta is None:
            tilts[name] = _each("nft_strength", own_strength, partial(tilt_of, config))
        elif own_strength is None:
            tilts[name] = _each("nft_beta", own_beta, partial(tilt_of, config, None))
        else:
            tilt_of(config, own_strength, own_beta)  # raises: they set the same thing
    return tilts


def tilts_of_rates(
    configs: Mapping[str, AdapterConfig],
    rate: Any,
    *,
    mode: str | None,
    guidance_scale: float | None,
    strength: Any = None,
    beta: Any = None,
    law: str | None = None,
) -> dict[str, Tilt]:
    """A tilt for every loaded adapter, from the share of liked pictures that is wanted.

    Args:
        configs: of the loaded adapters, by name.
        rate: one number or one for each sample, or a mapping {name: either}; adapters it does not name are at 0.
        mode, guidance_scale: of the call, by which the maps are chosen.
        strength, beta, law: given beside it by mistake.

    Raises:
        GuidanceError: as `tilt_for_rate`; a strength, a beta or a law was given too; or a
            name that is not loaded.
    """
    other = "nft_strength" if strength is not None else "nft_beta" if beta is not None else None
    other = "nft_law" if other is None and law is not None else other
    if other is not None:
        raise GuidanceError(
            f"nft_rate={rate} and {other} were both given, but a rate finds the strength itself, through the adapter's "
            "calibration. Give one of them."
        )
    if isinstance(rate, Mapping):
        check_names("nft_rate", rate, configs)
    tilts: dict[str, Tilt] = {}
    for name, config in configs.items():
        wanted = rate.get(name) if isinstance(rate, Mapping) else rate
        tilt_for = partial(tilt_for_rate, config, mode=mode, guidance_scale=guidance_scale)
        tilts[name] = 0.0 if wanted is None else _each("nft_rate", wanted, tilt_for)
    return tilts


def for_pictures(tilts: Mapping[str, Tilt], prompts: int, images: int) -> dict[str, Tilt]:
    """Tilts with one number per picture where there was one per prompt, whose pictures follow each other in the batch.

    Args:
        tilts: of the loaded adapters, by name.
        prompts: of the call.
        images: drawn of each prompt.

    Raises:
        GuidanceError: as many numbers as neither pictures nor prompts.
    """
    spread: dict[str, Tilt] = {}
    for name, tilt in tilts.items():
        if isinstance(tilt, tuple) and len(tilt) not in (prompts * images, prompts):
            or_prompts = f", or {prompts}, one for each prompt" if images > 1 else ""
            raise GuidanceError(
                f"there are {len(tilt)} strengths for the adapter {name!r}, and the call draws {prompts * images} "
                f"pictures. Give {prompts * images}, one for each picture{or_prompts}; or one number for all."
            )
        if isinstance(tilt, tuple) and len(tilt) != prompts * images:
            tilt = tuple(each for each in tilt for _ in range(images))
        spread[name] = tilt
    return spread


def of_samples(tilt: Tilt, like: Tensor) -> float | Tensor:
    """A tilt as what multiplies a Tensor of the samples.

    Args:
        tilt: one for all samples, or one for each.
        like: shape (samples,).

    Raises:
        GuidanceError: the tilts are not as many as the samples.
    """
    if not isinstance(tilt, tuple):
        return tilt
    if len(tilt) != len(like):
        raise GuidanceError(
            f"there are {len(tilt)} strengths, and this step of the model has {len(like)} samples. Give one for each "
            "picture of the call; or one number for all, where the model splits or extends the batch in its own way."
        )
    return like.new_tensor(tilt)


def is_off(tilt: Tilt) -> bool:
    """Whether a tilt is 0, for all samples."""
    return not any(tilt) if isinstance(tilt, tuple) else tilt == 0


def check_signs(combine: str, tilts: Mapping[str, Tilt]) -> None:
    """Raise GuidanceError for a combination that has no law at tilts of these signs.

    Args:
        combine: a name in `nft_pipeline.laws.COMBINATIONS`.
        tilts: of the loaded adapters, by name.
    """
    if not COMBINATIONS[combine].odds_scale:
        return
    rows = max((len(tilt) for tilt in tilts.values() if isinstance(tilt, tuple)), default=1)
    by_sample = [tilt if isinstance(tilt, tuple) else (tilt,) * rows for tilt in tilts.values()]
    for sample in itertools.zip_longest(*by_sample, fillvalue=0.0):
        negative = [name for name, tilt in zip(tilts, sample, strict=True) if tilt < 0]
        if len(negative) > 1:
            raise GuidanceError(
                f'nft_combine="{combine}" takes one negative strength at most, and those of '
                f"{' and '.join(map(repr, negative))} are negative: several weights below 1 can add up to less than "
                'nothing. Use nft_combine="all" to avoid each of several things.'
            )


def _each(argument: str, value: Any, tilt_for: Callable[[Any], float]) -> Tilt:
    values = listed(value)
    if values is None:
        return tilt_for(value)
    if not values:
        raise GuidanceError(f"{argument} is an empty list, expected a number, or one for each picture.")
    return tuple(tilt_for(one) for one in values)


def check_names(argument: str, named: Mapping[str, Any], configs: Mapping[str, AdapterConfig]) -> None:
    """Raise GuidanceError if a mapping by adapter names one that is not loaded.

    Args:
        argument: what the person calls it.
        named: the mapping.
        configs: of the loaded adapters, by name.
    """
    for name in named:
        if name not in configs:
            hint = did_you_mean(name, configs, ' Did you mean "{}"?')
            raise GuidanceError(
                f"{argument} names the adapter {name!r}, loaded are {', '.join(map(repr, configs))}.{hint}"
            )
