"""What a call will do, said before it: by the map of the calibration, and for a prompt by what its first steps say."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch

from helpers.dials import measured_dial, unlearned_dial
from helpers.tiny import CALL, counted_forwards, tiny_adapter, tiny_pipe
from nft_pipeline import DiffusionNFTPipeline, GuidanceError, Promise, promise
from nft_pipeline.adapter import Adapter
from nft_pipeline.call import promised
from nft_pipeline.call.guided_call import guidance_scale_of
from nft_pipeline.dial.promise import odds_rate
from nft_pipeline.dial.scale import mended


def with_dial(adapter: Adapter, dial: Any) -> Adapter:
    return replace(adapter, config=replace(adapter.config, dial=dial))


@pytest.fixture(scope="module")
def pipe() -> Any:
    stock = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(stock, with_dial(tiny_adapter(stock.transformer), measured_dial()))
    small = {name: value for name, value in CALL.items() if name not in ("prompt", "output_type")}
    guided.call_defaults |= {**small, "num_inference_steps": 3, "guidance_scale": 1.0}
    guided.set_progress_bar_config(disable=True)
    return guided


def test_without_a_prompt_it_is_the_map(pipe: Any) -> None:
    at_one = pipe.promise(strength=1.0)
    assert isinstance(at_one, Promise) and at_one.measured and at_one.mode == "single" and not at_one.limit
    assert (at_one.base, at_one.rate, at_one.error) == (0.3, 0.7, 0.02)
    assert str(at_one) == "30% liked becomes 70% ± 2%"
    assert at_one == promise(pipe.nft_config, 1.0, guidance_scale=1.0)


def test_beyond_the_reach_it_says_where_that_ends(pipe: Any) -> None:
    assert "it reaches 92% at strength 2.5" in pipe.promise(strength=4).limit
    assert "it reaches 10% at strength -1" in pipe.promise(strength=-3).limit


def test_the_base_rate_is_that_of_the_map_of_the_guidance_scale(pipe: Any) -> None:
    assert pipe.promise(guidance_scale=3.0).base == 0.4 and pipe.promise(guidance_scale=3.0).rate == 0.8
    assert not pipe.promise(guidance_scale=3.2).limit
    assert "measured at guidance scale 3, and at 5 the dial does something else" in pipe.promise(guidance_scale=5).limit
    assert not pipe.promise(guidance_scale=0.0).limit, "0 and 1 are both without"
    pipe.call_defaults["guidance_scale"] = 7.0
    try:
        assert "at 7 the dial" in pipe.promise().limit, "without a scale it is that of a call without one"
    finally:
        pipe.call_defaults["guidance_scale"] = 1.0


def test_a_rate_of_ones_own_and_several_are_averaged(pipe: Any) -> None:
    assert pipe.promise(rate=0.1).rate == pytest.approx(odds_rate(0.1, 2.0))
    both = pipe.promise(rate=[0.1, 0.5])
    assert both.base == pytest.approx(0.3)
    assert both.rate == pytest.approx((odds_rate(0.1, 2.0) + odds_rate(0.5, 2.0)) / 2)


def test_a_prompt_has_the_base_rate_that_alpha_reads_in_the_first_steps(pipe: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(promised, "STEPS", 2)
    forwards: list[int] = []
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: forwards.append(1))
    before, bar = pipe.nft_stats, pipe._progress_bar_config
    found = pipe.promise("a ring", 1.0)
    hook.remove()
    assert pipe.nft_stats is before and pipe._progress_bar_config == bar, "it leaves no trace"
    calls = promised.NOISES // promised.AT_ONCE
    assert len(forwards) == calls * 3, "two steps of one forward each, and the third call of the denoiser is stopped"
    alphas = []
    for seed in range(0, promised.NOISES, promised.AT_ONCE):
        generators = [torch.Generator().manual_seed(seed + place) for place in range(promised.AT_ONCE)]
        pipe(prompt=["a ring"] * promised.AT_ONCE, generator=generators, nft_strength=1e-7, nft_mode="two_pass")
        stats = pipe.nft_stats
        alphas.append(mended(pipe.nft_config.dial, stats.alpha[1], stats.noise_level[1]))
    assert found.base == pytest.approx(torch.cat(alphas).mean().item(), abs=1e-5)
    assert found.rate == pytest.approx(odds_rate(found.base, 2.0))
    moved = pipe.promise("a ring", 1.0, guidance_scale=3.0).base
    assert math.log(moved / (1 - moved)) - math.log(found.base / (1 - found.base)) == pytest.approx(
        math.log(0.4 / 0.6) - math.log(0.3 / 0.7), abs=1e-4
    )


def test_who_draws_little_reads_little_and_at_the_size_that_is_drawn(pipe: Any) -> None:
    seen: list[torch.Size] = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["hidden_states"].shape), with_kwargs=True
    )
    rate = promised.prompt_rates(pipe, ["a ring"], noises=1, width=4, height=8, num_inference_steps=1)
    hook.remove()
    assert seen == [(promised.AT_ONCE, 4, 8, 4)]
    assert 0 < rate[0] < 1


def test_reading_a_step_takes_one_forward(pipe: Any) -> None:
    with counted_forwards(pipe.transformer) as count:
        promised.prompt_rates(pipe, ["a ring"], noises=1, num_inference_steps=2)
    assert count == [2]


def test_after_a_promise_a_call_is_what_it_was(pipe: Any) -> None:
    def latents() -> Any:
        return pipe("a ring", generator=torch.Generator().manual_seed(5), output_type="latent", nft_strength=1.0).images

    first = latents()
    pipe.promise("a ring")
    assert torch.equal(first, latents())


def test_a_mode_without_a_map_is_promised_by_the_law_and_says_so(pipe: Any) -> None:
    adapter = next(iter(pipe.nft_adapters.values()))
    lone = replace(adapter.config, dial=measured_dial(maps=adapter.config.dial.maps[:1]))
    by_law = promise(lone, mode="two_pass")
    assert not by_law.measured and by_law.base == 0.3 and "not measured" in str(by_law)


def test_what_was_not_learned_is_said(pipe: Any) -> None:
    adapter = next(iter(pipe.nft_adapters.values()))
    assert promise(replace(adapter.config, dial=unlearned_dial()), 1.0).limit.startswith("not learnable from this")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 1.5}, "rate is 1.5, expected a number between 0 and 1"),
        ({"rate": []}, "rate is \\[\\], expected"),
        ({"prompt": "a ring", "rate": 0.5}, "were both given"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"mode": "on"}, "nft_mode is 'on'"),
        ({"strength": math.inf}, "strength is inf"),
    ],
)
def test_errors(pipe: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(GuidanceError, match=message):
        pipe.promise(**arguments)


def test_without_an_adapter_or_a_head_it_says_so() -> None:
    guided = DiffusionNFTPipeline.from_pipe(tiny_pipe())
    with pytest.raises(GuidanceError, match="no adapter is loaded"):
        guided.promise()
    policy = with_dial(tiny_adapter(guided.transformer, kind="policy"), measured_dial())
    guided.load_nft_adapter(policy)
    assert guided.promise(guidance_scale=1.0).rate == 0.7
    with pytest.raises(GuidanceError, match="is a policy adapter, which has no alpha head"):
        guided.promise("a ring")
    guided.load_nft_adapter(with_dial(policy, None))
    with pytest.raises(GuidanceError, match="nothing is known of the base rate"):
        guided.promise()
    guided.unload_nft_adapter()


@pytest.mark.parametrize(
    ("stock", "given", "scale"),
    [
        ("StableDiffusion3Pipeline", {}, 7.0),
        ("StableDiffusion3Pipeline", {"guidance_scale": 1.0}, 1.0),
        ("FluxPipeline", {}, 3.5),
        ("FluxPipeline", {"true_cfg_scale": 4.0}, 4.0),
        ("QwenImagePipeline", {"true_cfg_scale": 1.0}, 1.0),
    ],
)
def test_the_guidance_scale_of_a_call(stock: str, given: dict[str, float], scale: float) -> None:
    assert guidance_scale_of(getattr(diffusers, stock), (), given) == scale
