"""What has to hold on every pipeline whatever it does to its denoiser, measured on a case of the zoo.

    at 1         a policy adapter's strength just below 1, in two passes, is its strength 1, in one
    batched      the mode "batched" is "two_pass"
    alone        a sample in a batch is the same sample in a call of its own
    neighbours   a positive adapter's alpha of a sample is the same whoever is beside it

Each is the largest difference as a share of the largest value, or the sentence by which the call is refused.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from helpers.zoo import Case, adapter_for, denoiser_of
from nft_pipeline.errors import GuidanceError
from nft_pipeline.families.registry import family_of, listed_family
from nft_pipeline.pipeline import DiffusionNFTPipeline

PROPERTIES = ("at 1", "batched", "alone", "neighbours")
BELOW_1 = 1 - 1e-6


def measured(case: Case, *, cfg: bool = False) -> dict[str, float | str]:
    """The properties of a case's pipeline, by name; those of a positive adapter only where it can be told what
    classifier-free guidance adds to the batch."""
    pipe = case.pipe()
    listed = listed_family(denoiser_of(pipe)) is not None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not among the denoisers")
        known = family_of(denoiser_of(pipe)).cfg != "unknown"
        text = {} if listed else {"text": False}
        policy, positive = (adapter_for(case, pipe, kind=kind, **text) for kind in ("policy", "positive"))
    of = _of_policy(case, pipe, policy, cfg)
    return of | (_of_positive(case, pipe, positive, cfg) if known or not cfg else {})


def _of_policy(case: Case, pipe: Any, adapter: Any, cfg: bool) -> dict[str, float | str]:
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    at_1 = _share(case.sample(guided, cfg=cfg, nft_strength=BELOW_1), case.sample(guided, cfg=cfg))
    both = case.sample(guided, [0, 1], cfg=cfg, nft_strength=0.5)
    alone = _share(both[1:], case.sample(guided, [1], cfg=cfg, nft_strength=0.5))
    batched: float | str
    try:
        batched = _share(case.sample(guided, [0, 1], cfg=cfg, nft_strength=0.5, nft_mode="batched"), both)
    except GuidanceError as error:
        batched = str(error)
    guided.unload_nft_adapter()
    return {"at 1": at_1, "batched": batched, "alone": alone}


def _of_positive(case: Case, pipe: Any, adapter: Any, cfg: bool) -> dict[str, float | str]:
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    alphas = []
    for indices in ([0, 1], [2, 1]):
        case.sample(guided, indices, cfg=cfg)
        alphas.append(guided.nft_stats.alpha)
    guided.unload_nft_adapter()
    assert alphas[0].shape[1] == 2, "one alpha per sample"
    assert (alphas[0][0, 0] - alphas[1][0, 0]).abs() > 1e-6, "the neighbours differ"
    return {"neighbours": float((alphas[0][:, 1] - alphas[1][:, 1]).abs().max())}


def _share(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).abs().max() / torch.clamp(expected.abs().max(), min=1.0))
