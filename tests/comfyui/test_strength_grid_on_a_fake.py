"""The node Reward Strength Grid on a FAKE of ComfyUI (helpers/fake_comfyui.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import fake_comfyui as fake
from helpers.comfyui_dials import dial, tilt_map
from helpers.comfyui_world import World
from nft_pipeline.errors import GuidanceError

STEPS = 4


def grid(world: World, pictures: int = 2, latent: Any = None, **values: Any) -> Any:
    given: dict[str, Any] = {
        "model": world.model,
        "adapter": "liked.safetensors",
        "positive": world.positive,
        "negative": world.negative,
        "latent_image": latent or {"samples": torch.zeros(pictures, 4, fake.WIDTH)},
        "vae": fake.VAE(),
        "strengths": "0, 0.5, 2",
        "seeds": "7, 8",
        "steps": STEPS,
        "cfg": 3.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
        "law": "nft",
        **values,
    }
    return world.nodes.NFTStrengthGrid.execute(**given)


def alone(world: World, strength: float, seed: int, pictures: int = 2, sampler: str = "euler", **values: Any) -> Tensor:
    """What KSampler behind Reward Guidance draws."""
    model = world.guided(strength=strength, law="nft", **values)
    noise = fake.prepare_noise(torch.zeros(pictures, 4, fake.WIDTH), seed)
    drawn = fake.sample(
        model, noise, STEPS, 3.0, sampler, "simple", world.positive, world.negative, noise * 0, seed=seed
    )
    return fake.VAE().decode(drawn)


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize(
    ("sampler", "together", "batches"),
    [("euler", 8, 2), ("euler", 64, 1), ("euler", 1, 6), ("euler_ancestral", 64, 6)],
)
def test_every_cell_is_the_picture_that_a_sampler_draws_alone(
    world: World, mode: str, sampler: str, together: int, batches: int
) -> None:
    sheet, images = grid(world, mode=mode, sampler_name=sampler, together=together).args
    told, total = fake.ProgressBar.told[-1]
    assert told == total == batches * (STEPS + 1)
    expected = [alone(world, strength, seed, 2, sampler, mode=mode) for seed in (7, 8) for strength in (0, 0.5, 2)]
    torch.testing.assert_close(images, torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert (expected[0] - expected[2]).abs().max() > 1e-3
    assert sheet.shape[0] == 1 and sheet.shape[-1] == 3 and sheet.max() <= 1
    assert sheet.shape[1] > sheet.shape[2] * 0.9, "four rows, three columns"


def test_a_policy_and_a_map_of_a_calibration_share_batches_too(world: World) -> None:
    _, images = grid(world, adapter="policy.safetensors", together=64, law="auto").args
    expected = world.guided("policy", strength=2)
    noise = fake.prepare_noise(torch.zeros(2, 4, fake.WIDTH), 8)
    drawn = fake.sample(expected, noise, STEPS, 3.0, "euler", "simple", world.positive, world.negative, noise)
    torch.testing.assert_close(images[-2:], fake.VAE().decode(drawn), rtol=1e-4, atol=1e-5)
    world.add("dialled", "positive", 4, dial=dial(tilt_map("two_pass", 0.5, 0.95, 3.0)))
    _, images = grid(world, adapter="dialled.safetensors", together=64, law="auto").args
    one_by_one = grid(world, adapter="dialled.safetensors", together=1, law="auto").args[1]
    torch.testing.assert_close(images, one_by_one, rtol=1e-4, atol=1e-5)
    assert "liked" in world.texts[-1]


def test_one_strength_none_and_one_picture(world: World) -> None:
    _, images = grid(world, pictures=1, strengths="1", seeds="").args
    torch.testing.assert_close(images, alone(world, 1.0, 0, 1), rtol=1e-4, atol=1e-5)
    _, images = grid(world, pictures=1, strengths="  ", seeds="3").args
    torch.testing.assert_close(images, torch.cat([alone(world, s, 3, 1) for s in (0, 1)]), rtol=1e-4, atol=1e-5)
    world.model.model.calls = 0
    grid(world, strengths="0, 0", seeds="1")
    assert world.model.model.calls == STEPS, "strength 0 alone costs nothing more"


def test_prompts_are_rows_and_keep_what_the_positive_input_carries(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nft_pipeline.comfy_nodes import host

    world.positive[0] = [torch.zeros(1), {"guidance": 3.5, "pooled_output": "old"}]
    ((_, carried),) = host.encode(fake.Clip(), "a ring", world.positive)
    assert carried == {"guidance": 3.5, "pooled_output": None}
    conds = {"a ring": fake.conditioning(6), "two rings": fake.conditioning(9)}
    monkeypatch.setattr(host, "encode", lambda clip, text, like: conds[text])
    _, images = grid(world, prompts="a ring\n\n two rings ", seeds="7", strengths="1", clip=fake.Clip()).args
    for i, cond in enumerate(conds.values()):
        world.positive = cond
        torch.testing.assert_close(images[2 * i : 2 * i + 2], alone(world, 1.0, 7), rtol=1e-4, atol=1e-5)


def test_a_mask_for_each_picture_goes_with_each_cell(world: World) -> None:
    mask = torch.stack([torch.zeros(4, fake.WIDTH), torch.ones(4, fake.WIDTH)])
    latent = {"samples": torch.full((2, 4, fake.WIDTH), 0.25), "noise_mask": mask}
    _, images = grid(world, latent=latent, strengths="0, 1", seeds="7").args
    kept = fake.VAE().decode(torch.full((1, 4, fake.WIDTH), 0.25))[0]
    assert torch.equal(images[0], kept) and torch.equal(images[2], kept) and not torch.equal(images[3], kept)


def test_cancel_leaves_nothing_behind(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake.ProgressBar, "cancelled_at", 6)
    with pytest.raises(InterruptedError):
        grid(world)
    assert not [module for module in world.model.model.modules() if "forward" in module.__dict__]


def test_an_adapter_of_another_loader_is_used_instead_of_the_file(world: World) -> None:
    (loaded,) = world.nodes.NFTLoadAdapter.execute("other.safetensors").args
    by_socket = grid(world, law="auto", loaded=loaded).args[1]
    assert torch.equal(by_socket, grid(world, law="auto", adapter="other.safetensors").args[1])


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"strengths": "0, x"}, "'x' in strengths is no finite number"),
        ({"strengths": "0 to 2 by 0"}, "is a range of 0 numbers"),
        ({"strengths": "2 to 0 by 1"}, "is a range of 0 numbers"),
        ({"strengths": "0 to 2 by 0.001"}, "is a range of 2001 numbers"),
        ({"strengths": "1.2.3 to 2"}, "is no range"),
        ({"seeds": "-1"}, "'-1' in seeds is no seed"),
        ({"seeds": str(2**64)}, "is no seed"),
        ({"seeds": "1 to 100"}, "100 seeds x 1 prompts = 300 places, and 256 is the most"),
        ({"prompts": "a ring"}, "prompts has text, but no clip is connected"),
    ],
)
def test_what_is_refused(world: World, values: dict[str, Any], fault: str) -> None:
    with pytest.raises(GuidanceError, match=fault):
        grid(world, **values)


def test_ranges(world: World) -> None:
    from nft_pipeline.comfy_nodes.sheet.cells import seeds_of, strengths_of

    assert strengths_of("-1 to 1 by 0.5, 4") == [-1, -0.5, 0, 0.5, 1, 4]
    assert strengths_of("2 to 0 by -1") == [2, 1, 0] and strengths_of("0 to 0.3 by 0.1") == [0, 0.1, 0.2, 0.3]
    assert seeds_of("18446744073709551610 to 18446744073709551612\n3") == [*range(2**64 - 6, 2**64 - 3), 3]


def test_strengths_of_two_modes_stand_in_batches_of_their_own(world: World) -> None:
    one = {**tilt_map("single", 0.0, 0.8), "goes_on": True}
    two = {**tilt_map("two_pass", 0.0, 0.95), "tilts": [-2.0, 0.0, 2.0, 5.0], "weights": [-0.4, 0.0, 0.7, 2.0]}
    world.add("further", "policy", 4, dial=dial(one, two))
    _, images = grid(world, adapter="further.safetensors", strengths="0, 1, 2", together=64, law="auto", cfg=1.0).args
    assert fake.ProgressBar.told[-1][1] == 4 * (STEPS + 1), "two modes of two rows"
    one_by_one = grid(world, adapter="further.safetensors", strengths="0, 1, 2", together=1, law="auto", cfg=1.0).args
    torch.testing.assert_close(images, one_by_one[1], rtol=1e-4, atol=1e-5)
