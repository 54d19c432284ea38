"""The node Reward Early Choice on a FAKE of ComfyUI (helpers/fake_comfyui.py)."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from comfyui.test_nodes_on_a_fake import STEPS, World, replaced
from torch import Tensor

from nft_pipeline.errors import GuidanceError


def chosen(world: World, model: Any, candidates: int = 4, after: int = 2, **values: Any) -> Any:
    return world.nodes.NFTEarlyChoice.execute(model, candidates, after, **values).args[0]


def kept(world: World) -> list[int]:
    """The seeds that the live text names, one per picture."""
    line = [text for text in world.texts if text.startswith("of ")][-1]
    return [int(seed) for seed in re.findall(r"seed (\d+)", line)]


def noise_of(seed: int, given: Tensor) -> Tensor:
    return torch.randn(given.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_it_draws_what_the_sampler_draws_from_the_noise_of_highest_alpha(
    world: World, strength: float, mode: str, cfg: float
) -> None:
    guided = world.guided(strength=strength, mode=mode)
    drawn = world.sample(chosen(world, guided), cfg)
    seeds, given = kept(world), world.noise
    assert len(seeds) == 2
    pictures, alphas = {}, {}
    tried = [3, *torch.randint(2**32, (1, 3), generator=torch.Generator().manual_seed(3))[0].tolist()]
    for seed in tried:  # 3 is the sampler's own, whose noise is as given
        world.noise = given if seed == 3 else noise_of(seed, given)
        pictures[seed] = world.sample(guided, cfg)
        watched = guided if strength else world.guided(strength=1e-9, mode=mode)
        world.sample(watched, cfg)
        from nft_pipeline.comfy_nodes import host

        alphas[seed] = host.guides_of(watched)[0].stats.alpha[1]
    for i, seed in enumerate(seeds):
        assert torch.equal(drawn[i], pictures[seed][i])
        assert alphas[seed][i] == pytest.approx(float(max(alphas[s][i] for s in tried)), abs=1e-5)
    assert not replaced(world.model)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_scout_draws_the_best_noises_of_the_whole_batch(world: World, mode: str) -> None:
    from nft_pipeline.comfy_nodes import host

    guided, given = world.guided(mode=mode), world.noise
    drawn = world.sample(chosen(world, guided, among="the whole batch"))
    line = [text for text in world.texts if text.startswith("of ")][-1]
    tried = [3, *torch.randint(2**32, (1, 3), generator=torch.Generator().manual_seed(3))[0].tolist()]
    ranked = []
    for seed in tried:
        world.noise = given if seed == 3 else noise_of(seed, given)
        pictures = world.sample(guided)
        alphas = host.guides_of(guided)[0].stats.alpha[1]
        ranked += [(float(alphas[i]), seed, i, pictures[i]) for i in range(2)]
    ranked.sort(key=lambda entry: -entry[0])
    for place, (_, seed, i, picture) in enumerate(ranked[:2]):
        torch.testing.assert_close(drawn[place], picture, rtol=1e-4, atol=1e-5)
        assert f"(seed {seed}, picture {i + 1})" in line
    expected = sum(alpha for alpha, *_ in ranked[:2]) / 2, sum(alpha for alpha, *_ in ranked) / 8
    assert line.startswith("of 8 noises kept: ")
    assert f"alpha expects {expected[0]:.0%} of those kept to be liked, {expected[1]:.0%} of all" in line
    assert line.endswith(f"looking took {4 * 2 * (2 if mode == 'exact' else 1)} forwards")


def test_a_scout_needs_pictures_that_start_alike(world: World) -> None:
    from nft_pipeline.comfy_nodes.choose import Choice

    model = chosen(world, world.guided(), among="the whole batch")
    (choice,) = (
        wrapper.__self__
        for group in model.model_options["transformer_options"]["wrappers"]["sampler_sample"].values()
        for wrapper in group
        if isinstance(wrapper.__self__, Choice)
    )
    choice._check_alike((torch.zeros(2, 4), None))
    with pytest.raises(GuidanceError, match="the pictures of this batch start from different latents"):
        choice._check_alike((torch.arange(2.0), None))


def test_the_record_is_that_of_the_picture_and_the_cost_is_the_drafts(world: World) -> None:
    from nft_pipeline.comfy_nodes import host

    model = chosen(world, world.guided(strength=0.0), candidates=5, after=2)
    world.model.model.calls = 0
    world.sample(model)
    assert world.model.model.calls == STEPS + 5 * 2
    guided = world.guided(strength=1.0)
    world.sample(chosen(world, guided))
    assert host.guides_of(guided)[0].stats.steps == STEPS


def test_one_candidate_or_no_noise_changes_nothing(world: World) -> None:
    guided = world.guided()
    assert torch.equal(world.sample(chosen(world, guided, candidates=1)), world.sample(guided))
    world.noise = torch.zeros_like(world.noise)
    world.model.model.calls = 0
    world.sample(chosen(world, guided))
    assert world.model.model.calls == 2 * STEPS


def test_what_is_refused(world: World) -> None:
    with pytest.raises(GuidanceError, match="there is no reward adapter on this model"):
        chosen(world, world.model)
    with pytest.raises(GuidanceError, match="no adapter at work has an alpha head"):
        chosen(world, world.guided("policy"))
    with pytest.raises(GuidanceError, match="among is 'all', expected one of 'each picture', 'the whole batch'"):
        chosen(world, world.guided(), among="all")
    with pytest.raises(GuidanceError, match="the choice is after step 9, and the sampler takes 5 steps"):
        world.sample(chosen(world, world.guided(), after=9))
    with pytest.raises(GuidanceError, match="alpha was not read in step 1"):
        world.sample(chosen(world, world.guided(start_percent=0.5), after=1))
