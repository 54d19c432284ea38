"""Early choice in a guided call: which noises are kept, what they cost, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.tiny import CALL, assert_same_state, counted_forwards, sample, state_of, tiny_adapter, tiny_pipe
from helpers.zoo import CASES, Case, adapter_for
from nft_pipeline.errors import GuidanceError
from nft_pipeline.pipeline import DiffusionNFTPipeline

CFG: dict[str, Any] = {"guidance_scale": 4.0, "negative_prompt": "a dog"}
SOME = ("StableDiffusionPipeline", "FluxPipeline", "WanPipeline", "SanaPipeline", "ZImagePipeline")


def guided_pipe(**adapter: Any) -> Any:
    pipe = tiny_pipe()
    return DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, **adapter))


def again(seeds: torch.Tensor) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]


def alphas_of(guided: Any, seeds: list[int], step: int, **call: Any) -> torch.Tensor:
    """Alpha of step `step` at (almost) no strength, one picture after the other."""
    values = []
    for seed in seeds:
        sample(guided, seed=seed, nft_strength=call.get("nft_strength", 1e-12), **call)
        values.append(guided.nft_stats.alpha[step - 1, 0])
    return torch.stack(values)


@pytest.mark.parametrize("cfg", [{}, CFG], ids=["cfg_free", "cfg"])
def test_at_strength_0_the_kept_picture_is_the_bases_own(cfg: dict[str, Any]) -> None:
    guided, stock = guided_pipe(), tiny_pipe()
    call = {**cfg, "prompt": ["a cat", "a dog"], "num_images_per_prompt": 2}
    picture = sample(guided, nft_strength=0, nft_candidates=3, **call)
    seeds = guided.nft_stats.seeds
    assert seeds.shape == (4,) and len(set(seeds.tolist())) == 4
    assert torch.equal(picture, sample(stock, generator=again(seeds), **call))


@pytest.mark.parametrize("after", [1, 2])
def test_it_keeps_the_noise_of_highest_alpha_at_that_step(after: int) -> None:
    guided = guided_pipe()
    sample(guided, nft_strength=0, nft_candidates=5, nft_choose_after=after)
    tried = torch.randint(2**32, (5,), generator=torch.Generator().manual_seed(0)).tolist()
    best = int(alphas_of(guided, tried, after).argmax())
    sample(guided, nft_strength=0, nft_candidates=5, nft_choose_after=after)
    assert guided.nft_stats.seeds.tolist() == [tried[best]]
    sample(guided, nft_strength=-1, nft_candidates=5, nft_choose_after=1)
    assert guided.nft_stats.seeds.tolist() == [tried[int(alphas_of(guided, tried, 1).argmin())]], "to be disliked"


def test_the_forwards_are_counted_drafts_included() -> None:
    guided = guided_pipe()
    for strength, per_step in ((0, 1), (1, 2)):
        with counted_forwards(guided.transformer) as count:
            sample(guided, nft_strength=strength, nft_candidates=4, nft_choose_after=2)
        stats = guided.nft_stats
        assert stats.passes.tolist() == [per_step] * 3
        assert stats.draft_forwards == 4 * (per_step + 1), "a draft's last step ends where alpha is known"
        assert stats.forwards == count[0] == 3 * per_step + 4 * (per_step + 1)
        assert f"{stats.forwards} denoiser forwards, {stats.draft_forwards} of them in drafts" in str(stats)
    sample(guided)
    assert guided.nft_stats.draft_forwards == 0 and guided.nft_stats.seeds is None


def test_guidance_acts_in_the_drafts_and_after_them() -> None:
    guided = guided_pipe(tilt=6.0)
    picture = sample(guided, nft_candidates=3, nft_mode="batched", nft_choose_after=2)
    seeds = guided.nft_stats.seeds
    plain = sample(guided, generator=again(seeds), nft_mode="batched")
    assert torch.equal(picture, plain)
    outside = sample(guided, nft_candidates=3, nft_interval=(0.0, 0.1))
    assert torch.equal(outside, sample(guided, generator=again(guided.nft_stats.seeds), nft_interval=(0.0, 0.1)))


def test_one_generator_per_picture_and_candidates_that_repeat() -> None:
    guided = guided_pipe()
    call = {"prompt": ["a cat", "a cat"], "nft_candidates": 3, "nft_strength": 0}
    both = sample(guided, generator=again(torch.tensor([5, 6])), **call)
    kept = guided.nft_stats.seeds
    assert torch.equal(sample(guided, generator=again(torch.tensor([5, 6])), **call), both)
    sample(guided, generator=again(torch.tensor([6])), **{**call, "prompt": "a cat"})
    assert guided.nft_stats.seeds[0] == kept[1], "a picture's candidates are its generator's"


@pytest.mark.parametrize("case", [CASES[name] for name in SOME], ids=SOME)
@pytest.mark.parametrize("cfg", [False, True], ids=["cfg_free", "cfg"])
def test_in_every_kind_of_pipeline(case: Case, cfg: bool) -> None:
    pipe = case.pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(case, pipe))
    free = {"latents": None, "cfg": cfg, "nft_strength": 0}
    picture = case.sample(guided, [0, 1], **free, nft_candidates=3, nft_choose_after=1)
    stats = guided.nft_stats
    assert stats.steps == case.steps and stats.draft_forwards == 3
    again_seeds = again(stats.seeds)
    assert torch.equal(case.sample(guided, [0, 1], **free, generator=again_seeds), picture)


def test_nothing_is_left_behind_after_a_draft_or_an_error() -> None:
    guided = guided_pipe()
    before, bar = state_of(guided.transformer), dict(guided._progress_bar_config)
    sample(guided, nft_candidates=3)
    assert_same_state(before, state_of(guided.transformer))

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(guided, nft_candidates=3, nft_choose_after=2, callback_on_step_end=stop)
    assert_same_state(before, state_of(guided.transformer))
    assert guided._progress_bar_config == bar
    assert torch.equal(sample(guided, nft_strength=0), sample(tiny_pipe()))


def test_two_adapters_are_judges_together_and_one_that_is_off_is_none() -> None:
    pipe = tiny_pipe()
    adapters = {"one": tiny_adapter(pipe.transformer), "two": tiny_adapter(pipe.transformer, seed=8, alpha=0.5)}
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapters)
    call = {"nft_candidates": 4, "nft_choose_after": 1, "seed": 1}
    sample(guided, nft_strength={"one": 1.0}, **call)
    by_one = guided.nft_stats.seeds
    sample(guided, nft_strength=0, **call)
    assert torch.equal(guided.nft_stats.seeds, by_one), "the other says the same of all"
    sample(guided, nft_strength={"two": 1.0}, **call)
    tried = torch.randint(2**32, (4,), generator=torch.Generator().manual_seed(1))
    assert guided.nft_stats.seeds[0] == tried[0], "all are equal for it"
    assert by_one[0] != tried[0], "or the test says nothing"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nft_candidates": 0}, "nft_candidates is 0, expected a whole number of at least 1"),
        ({"nft_candidates": 2.0}, "nft_candidates is 2.0, expected a whole number"),
        ({"nft_candidates": True}, "nft_candidates is True, expected a whole number"),
        ({"nft_candidates": 2, "nft_choose_after": 0}, "nft_choose_after is 0, expected a whole number"),
        ({"nft_choose_after": 2}, "nft_choose_after is 2, and there is nothing to choose from"),
        ({"nft_candidates": 2, "nft_choose_after": 4}, "nft_choose_after is 4, and the call has 3 steps"),
        ({"nft_candidates": 2, "latents": torch.zeros(1, 4, 8, 8)}, "latents gives the noise"),
        ({"nft_candidates": 2, "generator": again(torch.arange(2)), "prompt": ["a"] * 3}, "list of generators of"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], message: str) -> None:
    guided = guided_pipe()
    with pytest.raises((GuidanceError, ValueError), match=message):
        guided(**{**CALL, "generator": torch.Generator().manual_seed(0), **arguments})


def test_a_policy_adapter_cannot_choose() -> None:
    guided = guided_pipe(kind="policy")
    with pytest.raises(GuidanceError, match=r"no adapter at work has an alpha head: 'default'"):
        sample(guided, nft_candidates=2)
