"""All that has to hold on a pipeline, of a case of the zoo or of one made of diffusers' tests, measured.

Besides helpers/properties.py:

    at 0         strength 0 is the stock pipeline, bit for bit
    at 1         also: strength 1 is the stock pipeline with the LoRA on
    rows         a strength for each sample is each of them in a call of its own
    effect       how much the LoRA does at strength 1, without which the others would say nothing

Every number is the largest difference as a share of the largest value.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor

from helpers.properties import BELOW_1, neighbours, share
from helpers.zoo import adapter_for, denoiser_of
from nft_pipeline.engine.lora_loading import attach_lora
from nft_pipeline.errors import AdapterError, FamilyError, GuidanceError
from nft_pipeline.families.registry import listed_family
from nft_pipeline.pipeline import DiffusionNFTPipeline

Measured = dict[str, "float | str"]


def whole(case: Any, pipe: Any, variants: dict[str, bool], *, text: bool) -> dict[str, Measured]:
    """Every property by name, for each variant of the call; a later variant is tried where an earlier one was refused
    something, for that and for "at 1".

    Args:
        case: has `sample` and `alone`, and may have `own_rows`.
        pipe: of it.
        variants: by name, whether with classifier-free guidance.
        text: whether a head reads the text.

    Raises:
        FamilyError: the pipeline is refused when an adapter is loaded.
    """
    rows = not case.alone and getattr(case, "own_rows", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = text and listed_family(denoiser_of(pipe)) is not None
        policy, positive = (adapter_for(case, pipe, kind=kind, text=text) for kind in ("policy", "positive"))
        guided = DiffusionNFTPipeline.from_pipe(pipe, policy)
        asked = {"at 0", "at 1", "batched", *(("alone", "rows") if rows else ())}
        measured: dict[str, Measured] = {}
        pictures: dict[str, tuple[Tensor, Tensor]] = {}
        for name, cfg in variants.items():
            if asked:
                stock, at_1 = case.sample(pipe, [1], cfg=cfg), case.sample(guided, [1], cfg=cfg)
                pictures[name] = stock, at_1
                measured[name] = _of_policy(case, guided, cfg, stock, at_1, asked)
                asked = {what for what in asked if isinstance(measured[name].get(what, ""), str)}
        guided.unload_nft_adapter()
        if rows:
            guided = DiffusionNFTPipeline.from_pipe(pipe, positive)
            for name, cfg in variants.items():
                error = _or_refused(functools.partial(neighbours, case, guided, cfg))
                measured.setdefault(name, {})["neighbours"] = error
                if not isinstance(error, str):
                    break
            guided.unload_nft_adapter()
        attach_lora(denoiser_of(pipe), policy.lora, policy.config.component, "on")
        for name, (stock, at_1) in pictures.items():
            lora_on = case.sample(pipe, [1], cfg=variants[name])
            measured[name]["effect"] = share(lora_on, stock)
            error = measured[name]["at 1"]
            if not isinstance(error, str):
                measured[name]["at 1"] = max(error, share(at_1, lora_on))
    return measured


def _of_policy(case: Any, guided: Any, cfg: bool, stock: Tensor, at_1: Tensor, asked: set[str]) -> Measured:
    all_of = [0, 1] if "alone" in asked or "rows" in asked else [1]

    def sample(indices: list[int], **nft: Any) -> Tensor:
        result: Tensor = case.sample(guided, indices, cfg=cfg, **nft)
        return result

    measured: Measured = {"at 1": _or_refused(lambda: share(sample([1], nft_strength=BELOW_1), at_1))}
    if "at 0" in asked:
        measured["at 0"] = share(sample([1], nft_strength=0), stock)
    if isinstance(measured["at 1"], str):
        return measured
    both = sample(all_of, nft_strength=0.5)
    if "batched" in asked:
        measured["batched"] = _or_refused(lambda: share(sample(all_of, nft_strength=0.5, nft_mode="batched"), both))
    if len(all_of) > 1:
        alone = sample([1], nft_strength=0.5)
        measured["alone"] = share(both[1:], alone)
        measured["rows"] = _or_refused(lambda: share(sample(all_of, nft_strength=[0.25, 0.5])[1:], alone))
    return measured


def _or_refused(measure: Callable[[], float]) -> float | str:
    try:
        return measure()
    except (GuidanceError, FamilyError, AdapterError) as error:
        return str(error)
