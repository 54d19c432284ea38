"""SMC on a pipeline: what is kept, what is drawn anew, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from helpers.tiny import CALL, assert_same_state, counted_forwards, sample, state_of, tiny_adapter, tiny_pipe
from nft_pipeline.call.particles import draw_particles
from nft_pipeline.errors import GuidanceError
from nft_pipeline.pipeline import DiffusionNFTPipeline
from nft_pipeline.search.smc import log_twist

CFG: dict[str, Any] = {"guidance_scale": 4.0, "negative_prompt": "a dog"}


def guided_pipe(**adapter: Any) -> Any:
    pipe = tiny_pipe()
    return DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, **adapter))


def with_a_sharp_head(guided: Any) -> Any:
    """Its head tells pictures apart."""
    head = guided.nft_adapters["default"].head
    with torch.no_grad():
        head.attention_out.weight *= 15
        head.evidence_out.weight *= 15
    return guided


def drawn(guided: Any, **arguments: Any) -> Any:
    call = {**CALL, "generator": torch.Generator().manual_seed(0), "particles": 6, **arguments}
    return draw_particles(guided, call.pop("prompt"), **call)


@pytest.mark.parametrize("cfg", [{}, CFG], ids=["cfg_free", "cfg"])
def test_without_fresh_noise_and_without_a_tilt_it_is_the_base(cfg: dict[str, Any]) -> None:
    guided = guided_pipe()
    result = drawn(guided, strength=0, eta=1e-7, prompt=["a cat", "a dog"], **cfg)
    generator = torch.Generator().manual_seed(0)
    torch.randint(2**32, (1,), generator=generator)  # of which the fresh noise is made
    call = {"prompt": ["a cat", "a dog"], "num_images_per_prompt": 6, "generator": generator, **cfg}
    torch.testing.assert_close(result.output.images, sample(tiny_pipe(), **call), atol=1e-4, rtol=0)
    assert result.survivors == [6, 6]


def test_it_moves_to_what_alpha_likes_at_one_forward_per_step() -> None:
    guided = with_a_sharp_head(guided_pipe(tilt=30.0))
    means = []
    for strength in (-1, 0, 1):
        with counted_forwards(guided.transformer) as count:
            result = drawn(guided, strength=strength, particles=16, num_inference_steps=6)
        stats = guided.nft_stats
        assert count[0] == stats.forwards == 6 and bool((stats.scales == 0).all()), "the LoRA is off"
        means.append(float(stats.alpha[-1].mean()))
        assert result.ancestors.shape == (1, 16) and (result.survivors[0] < 16) == (strength != 0)
        assert bool(result.output.images.isfinite().all())
    assert means == sorted(means) and means[2] > means[0] + 0.01


def test_prompts_are_groups_of_their_own() -> None:
    guided = guided_pipe(tilt=8.0)
    result = drawn(guided, prompt=["a cat", "zzzz"], particles=8, eta=1e-7, num_inference_steps=6)
    generator = torch.Generator().manual_seed(0)
    torch.randint(2**32, (1,), generator=generator)
    base = sample(
        tiny_pipe(), prompt=["a cat", "zzzz"], num_images_per_prompt=8, generator=generator, num_inference_steps=6
    )
    # Without fresh noise a particle is its ancestor's own picture.
    for group in range(2):
        expected = base[8 * group + result.ancestors[group]]
        torch.testing.assert_close(result.output.images[8 * group : 8 * group + 8], expected, atol=1e-3, rtol=0)


def test_the_scheduler_and_the_denoiser_are_put_back_also_after_an_error() -> None:
    guided = guided_pipe()
    before = state_of(guided.transformer)

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    drawn(guided)
    with pytest.raises(KeyboardInterrupt):
        drawn(guided, callback_on_step_end=stop)
    assert "step" not in vars(guided.scheduler)
    assert_same_state(before, state_of(guided.transformer))
    assert torch.equal(sample(guided, nft_strength=0), sample(tiny_pipe()))


def test_each_prompt_may_have_a_strength_of_its_own() -> None:
    guided = with_a_sharp_head(guided_pipe(tilt=30.0))
    call = {"prompt": ["a cat", "a cat"], "particles": 16, "num_inference_steps": 6}
    for strengths in ([1.0, -1.0], [-1.0, 1.0]):
        drawn(guided, strength=strengths, **call)
        means = guided.nft_stats.alpha[-1].view(2, 16).mean(1)
        assert (means[0] - means[1]) * strengths[0] > 0.01
    alphas = torch.rand(1, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        log_twist(alphas, [(1.0, 1.0, -2.0, -2.0)]),
        torch.cat([log_twist(alphas[:, :2], [1.0]), log_twist(alphas[:, 2:], [-2.0])]),
    )
    with pytest.raises(GuidanceError, match="there are 32 strengths for the adapter 'default' and 2 prompts"):
        drawn(guided, strength=[1.0] * 32, **call)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"particles": 1}, "particles is 1, expected a whole number of at least 2"),
        ({"eta": 0}, "eta is 0, expected a number above 0"),
        ({"num_images_per_prompt": 2}, "the particles of a prompt are its num_images_per_prompt"),
        ({"strength": 1, "beta": 1}, "were both given"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(GuidanceError, match=message):
        drawn(guided_pipe(), **arguments)


def test_a_policy_adapter_and_another_scheduler_are_refused() -> None:
    with pytest.raises(GuidanceError, match="no adapter at work has an alpha head"):
        drawn(guided_pipe(kind="policy"))
    guided = guided_pipe()
    for scheduler in (DDIMScheduler(), FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)):
        guided.scheduler = scheduler
        with pytest.raises(GuidanceError, match="particles need the steps of a FlowMatchEulerDiscreteScheduler"):
            drawn(guided)
