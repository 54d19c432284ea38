"""What has to hold on every pipeline whatever it does to its denoiser, measured on a case of the zoo.

    at 1         a policy adapter's strength just below 1, in two passes, is its strength 1, in one
    batched      the mode "batched" is "two_pass"
    alone        a sample in a batch is the same sample in a call of its own
    neighbours   a positive adapter's alpha of a sample is the same whoever is beside it

Of a pipeline whose calls take one sample, the first alone can be measured.

Each is the largest difference as a share of the largest value, or the sentence by which the call is refused.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from helpers.zoo import Case, adapter_for, denoiser_of
from nft_pipeline.errors import FamilyError, GuidanceError
from nft_pipeline.families.registry import listed_family
from nft_pipeline.pipeline import DiffusionNFTPipeline

BELOW_1 = 1 - 1e-6


def measured(case: Case) -> dict[tuple[str, bool], float | str]:
    """The properties of a case's pipeline, by name and whether it was under classifier-free guidance."""
    pipe = case.pipe()
    ways = [False, True] if case.cfg([0]) else [False]
    listed = listed_family(denoiser_of(pipe)) is not None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not among the denoisers")
        policy, positive = (adapter_for(case, pipe, kind=kind, text=listed) for kind in ("policy", "positive"))
    guided = DiffusionNFTPipeline.from_pipe(pipe, policy)
    found: dict[tuple[str, bool], float | str] = {("at 1", cfg): _at_1(case, guided, cfg) for cfg in ways}
    if case.alone:
        return found
    for cfg in ways:
        both = case.sample(guided, [0, 1], cfg=cfg, nft_strength=0.5)
        found["batched", cfg] = _or_refused(functools.partial(_batched, case, guided, both, cfg))
        found["alone", cfg] = share(both[1:], case.sample(guided, [1], cfg=cfg, nft_strength=0.5))
    guided.unload_nft_adapter()
    guided = DiffusionNFTPipeline.from_pipe(pipe, positive)
    for cfg in ways:
        found["neighbours", cfg] = _or_refused(functools.partial(neighbours, case, guided, cfg))
    guided.unload_nft_adapter()
    return found


def _at_1(case: Case, guided: Any, cfg: bool) -> float:
    return share(case.sample(guided, cfg=cfg, nft_strength=BELOW_1), case.sample(guided, cfg=cfg))


def _batched(case: Case, guided: Any, both: Tensor, cfg: bool) -> float:
    return share(case.sample(guided, [0, 1], cfg=cfg, nft_strength=0.5, nft_mode="batched"), both)


def neighbours(case: Any, guided: Any, cfg: bool) -> float:
    """How much the alpha of a sample differs with who is beside it, on a pipeline with a positive adapter."""

    def beside(other: int) -> Tensor:
        case.sample(guided, [other, 1], cfg=cfg)
        alpha: Tensor = guided.nft_stats.alpha
        assert alpha.shape[1] == 2, "one alpha per sample"
        return alpha

    one, two = beside(0), beside(2)
    assert (one[0, 0] - two[0, 0]).abs() > 1e-6, "the neighbours differ"
    return float((one[:, 1] - two[:, 1]).abs().max())


def _or_refused(measure: Callable[[], float]) -> float | str:
    try:
        return measure()
    except (GuidanceError, FamilyError) as error:
        return str(error)


def share(ours: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest value, or of 1 where that is smaller."""
    return float((ours - expected).abs().max() / torch.clamp(expected.abs().max(), min=1.0))
