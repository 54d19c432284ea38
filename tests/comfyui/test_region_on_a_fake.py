"""The node Reward Region on a FAKE of ComfyUI (helpers/fake_comfyui.py)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import fake_comfyui as fake
from helpers.comfyui_world import SIGMAS, World, words_of
from nft_pipeline.comfy_nodes.passes import region_over
from nft_pipeline.errors import GuidanceError


def limited(world: World, model: Any, mask: Tensor) -> Any:
    return world.nodes.NFTRegion.execute(model, mask).args[0]


def by_hand(world: World, *pushes: tuple[str, float, Tensor]) -> Tensor:
    """Adapters at strengths, each times its mask."""
    x, text = world.noise, words_of(world.positive)
    for sigma, lower in pairwise(SIGMAS):
        old = world.model.model.diffusion_model(x, text)
        total = old
        for adapter, strength, mask in pushes:
            total = total + mask * strength * (world.merged(adapter).diffusion_model(x, text) - old)
        x = x + total * (lower - sigma)
    return x


def test_white_is_guided_black_is_the_model_and_grey_a_share(world: World) -> None:
    guided = world.guided("policy", strength=1.5)
    white, black = torch.ones(1, 4, fake.WIDTH), torch.zeros(1, 4, fake.WIDTH)
    for cfg in (1.0, 3.0):
        assert torch.equal(world.sample(limited(world, guided, white), cfg), world.sample(guided, cfg))
        assert torch.equal(world.sample(limited(world, guided, black), cfg), world.sample(world.model, cfg))
    mask = torch.rand(2, 4, fake.WIDTH, generator=torch.Generator().manual_seed(1))
    drawn = world.sample(limited(world, guided, mask))
    torch.testing.assert_close(drawn, by_hand(world, ("policy", 1.5, mask)), rtol=1e-4, atol=1e-5)
    guide = next(iter(guided.attachments.values()))
    assert torch.equal(world.sample(guided), world.sample(world.guided("policy", strength=1.5))), "as it was before"
    assert guide.stats.push.max() > 0


def test_a_policy_at_1_in_a_region_is_not_its_lora_everywhere(world: World) -> None:
    mask = torch.zeros(1, 4, fake.WIDTH)
    mask[:, :2] = 1
    drawn = world.sample(limited(world, world.guided("policy", strength=1.0), mask))
    torch.testing.assert_close(drawn, by_hand(world, ("policy", 1.0, mask)), rtol=1e-4, atol=1e-5)


def test_each_reward_keeps_its_own_region(world: World) -> None:
    one, two = torch.zeros(1, 4, fake.WIDTH), torch.zeros(1, 4, fake.WIDTH)
    one[:, :2], two[:, 2:] = 1, 1
    first = limited(world, world.guided("policy", strength=0.8), one)
    both = limited(world, world.guided("other", first, strength=-0.5), two)
    expected = by_hand(world, ("policy", 0.8, one), ("other", -0.5, two))
    torch.testing.assert_close(world.sample(both), expected, rtol=1e-4, atol=1e-5)


def test_a_cap_measures_the_push_in_the_region(world: World) -> None:
    mask = torch.zeros(1, 4, fake.WIDTH)
    mask[:, :1] = 1
    capped = world.guided("policy", strength=3.0, cap=0.02)
    world.sample(limited(world, capped, mask))
    (guide,) = capped.attachments.values()
    assert 0 < guide.stats.push.max() <= 0.02 * 1.0001


def test_a_mask_is_scaled_to_the_latent_and_goes_round_the_batch() -> None:
    mask = torch.zeros(2, 32, 16)
    mask[0, :16], mask[1, :, 8:] = 1, 1
    over = region_over(mask, torch.zeros(3, 16, 4, 2))
    assert over.shape == (3, 1, 4, 2)
    assert over[0, 0, 0].min() > 0.9 and over[0, 0, 3].max() < 0.1 and over[1, 0, :, 1].min() > 0.8
    assert torch.equal(over[0], over[2])
    assert region_over(mask[:1], torch.zeros(2, 16, 5, 4, 2)).shape == (2, 1, 1, 4, 2), "a video"


def test_what_is_refused(world: World) -> None:
    mask = torch.ones(1, 4, fake.WIDTH)
    with pytest.raises(GuidanceError, match="there is no reward on this model"):
        limited(world, world.model, mask)
    with pytest.raises(GuidanceError, match="a reward that has a region keeps it"):
        limited(world, limited(world, world.guided("policy"), mask), mask)
    with pytest.raises(GuidanceError, match='policy is drawn in mode "fast"'):
        limited(world, world.guided("policy", mode="fast"), mask)
