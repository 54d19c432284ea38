"""The formula, to the last digit that fp32 allows: what guidance computes against what stock pipelines compute."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.tiny import (
    TEXT_WIDTH,
    counted_forwards,
    load_style,
    random_head,
    random_lora,
    sample,
    tiny_adapter,
    tiny_pipe,
)
from nft_pipeline.engine.terms import Term
from nft_pipeline.pipeline import DiffusionNFTPipeline

CFG: dict[str, Any] = {"guidance_scale": 4.0, "negative_prompt": "a dog"}


def lora_on(*, style: bool = False, seed: int = 7, **kwargs: Any) -> Tensor:
    """What stock diffusers samples with the adapter's LoRA loaded the ordinary way."""
    pipe = tiny_pipe()
    names = ["nft_as_lora"]
    if style:
        load_style(pipe)
        names.insert(0, "style")
    pipe.load_lora_weights(random_lora(pipe.transformer, seed=seed), adapter_name="nft_as_lora")
    pipe.set_adapters(names)
    return sample(pipe, **kwargs)


@pytest.mark.parametrize("cfg", [{}, CFG], ids=["cfg_free", "cfg"])
@pytest.mark.parametrize("style", [False, True], ids=["alone", "with_style"])
@pytest.mark.parametrize("kind", ["positive", "policy"])
def test_strength_0_is_the_stock_pipeline_bit_for_bit(kind: str, style: bool, cfg: dict) -> None:
    pristine, pipe = tiny_pipe(), tiny_pipe()
    if style:
        load_style(pristine)
        load_style(pipe)
    expected = sample(pristine, **cfg)
    assert torch.equal(expected, sample(pipe, **cfg))
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, kind=kind))
    assert torch.equal(expected, sample(guided, nft_strength=0, **cfg))
    assert torch.equal(expected, sample(pipe, **cfg)), "the user's own pipeline, with our LoRA on the shared denoiser"
    assert not torch.equal(expected, sample(guided, nft_strength=1, **cfg))
    assert torch.equal(expected, sample(guided, nft_strength=0.0, **cfg))


def test_a_loaded_style_matters_in_these_tests() -> None:
    plain, styled = tiny_pipe(), tiny_pipe()
    load_style(styled)
    assert not torch.allclose(sample(plain), sample(styled), atol=1e-3)


@pytest.mark.parametrize("cfg", [{}, CFG], ids=["cfg_free", "cfg"])
@pytest.mark.parametrize("style", [False, True], ids=["alone", "with_style"])
def test_positive_adapter_at_tilt_alpha_1_is_the_lora_switched_on(style: bool, cfg: dict) -> None:
    pipe = tiny_pipe()
    if style:
        load_style(pipe)
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, alpha=1.0))
    expected = lora_on(style=style, **cfg)
    assert not torch.allclose(expected, sample(pipe, **cfg), atol=1e-3)
    torch.testing.assert_close(sample(guided, nft_beta=2.0, nft_law="nft", **cfg), expected, atol=1e-5, rtol=0)
    assert torch.equal(guided.nft_stats.scale, torch.ones(3, 1))


@pytest.mark.parametrize("cfg", [{}, CFG], ids=["cfg_free", "cfg"])
@pytest.mark.parametrize("style", [False, True], ids=["alone", "with_style"])
def test_policy_at_strength_1_is_the_lora_switched_on(style: bool, cfg: dict) -> None:
    pipe = tiny_pipe()
    if style:
        load_style(pipe)
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, kind="policy", tilt=20.0))
    expected = lora_on(style=style, **cfg)
    torch.testing.assert_close(sample(guided, **cfg), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(sample(guided, nft_beta=0.1, **cfg), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["positive", "policy"])
def test_linear_in_strength_on_one_forward(kind: str) -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, kind=kind))
    base = sample(pipe, num_inference_steps=1)
    once = sample(guided, num_inference_steps=1, nft_law="nft") - base
    assert once.abs().max() > 1e-3
    for strength in (-1.5, 0.5, 2.0):
        moved = sample(guided, num_inference_steps=1, nft_strength=strength, nft_law="nft") - base
        torch.testing.assert_close(moved, strength * once, atol=1e-5, rtol=0)


@pytest.mark.parametrize("strength", [-2.0, 0.5, 3.0])
def test_odds_law(strength: float) -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, tilt=1.5, alpha=0.3))
    base = sample(pipe, num_inference_steps=1)
    moved = sample(guided, num_inference_steps=1, nft_strength=strength, nft_law="odds") - base
    rho = math.exp(1.5 * strength) - 1
    s = rho * 0.3 / (1 + rho * 0.3)
    assert guided.nft_stats.scale.item() == pytest.approx(s, abs=1e-6)
    torch.testing.assert_close(moved, s * (lora_on(num_inference_steps=1) - base), atol=1e-5, rtol=0)


def test_alpha_is_what_the_head_says_about_the_base_pass() -> None:
    pipe = tiny_pipe()
    adapter: Any = tiny_adapter(pipe.transformer)
    seen = []

    def look(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(args[0])

    hook = pipe.transformer.norm_out.register_forward_pre_hook(look, with_kwargs=True)
    sample(pipe, num_inference_steps=1)
    hook.remove()
    text = pipe.encode_prompt("a cat", None, None, max_sequence_length=4)[0]
    alpha = adapter.head.alpha(seen[0], torch.ones(1), text)
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    sample(guided, num_inference_steps=1)
    torch.testing.assert_close(guided.nft_stats.alpha[0], alpha.detach())
    assert guided.nft_stats.noise_level.tolist() == [[1.0]]


def test_alpha_and_push_are_found_sample_by_sample() -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, tilt=4.0))
    prompts, seeds = ["a cat", "two dogs", "no fish"], [1, 2, 3]

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    batch = sample(guided, prompt=prompts, generator=generators())
    stats = guided.nft_stats
    assert stats.alpha.shape == stats.push.shape == (3, 3)
    assert stats.alpha[0].std() > 1e-3, "a head that says the same of every sample tests nothing"
    for i, prompt in enumerate(prompts):
        alone = sample(guided, prompt=prompt, generator=generators()[i])
        torch.testing.assert_close(alone[0], batch[i], atol=1e-5, rtol=0)
        for name in ("noise_level", "alpha", "scale", "push"):
            torch.testing.assert_close(
                getattr(guided.nft_stats, name)[:, 0], getattr(stats, name)[:, i], atol=1e-5, rtol=0
            )


def test_under_cfg_both_rows_get_the_conditional_rows_alpha() -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, tilt=4.0))
    one: dict[str, Any] = {"num_inference_steps": 1, "prompt": ["a cat", "two dogs"], "negative_prompt": ["a dog", ""]}
    result = sample(guided, guidance_scale=4.0, **one)
    stats = guided.nft_stats
    assert stats.alpha.shape == (1, 2)
    # One scale for both rows, so guidance and classifier-free guidance commute: the guided result lies on the line
    # between the two stock results.
    base, lora = sample(pipe, guidance_scale=4.0, **one), lora_on(guidance_scale=4.0, **one)
    scale = stats.scale[0].view(2, 1, 1, 1)
    torch.testing.assert_close(result, base + scale * (lora - base), atol=1e-5, rtol=0)
    sample(guided, guidance_scale=1.0, **{**one, "negative_prompt": None})
    torch.testing.assert_close(guided.nft_stats.alpha, stats.alpha, atol=1e-6, rtol=0)


def test_skip_layer_guidance_gets_the_steps_alpha_and_is_guided_too() -> None:
    slg: dict[str, Any] = {**CFG, "skip_guidance_layers": [1], "skip_layer_guidance_stop": 1.0}
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, alpha=1.0))
    with counted_forwards(pipe.transformer) as forwards:
        result = sample(guided, nft_beta=2.0, nft_law="nft", **slg)
    torch.testing.assert_close(result, lora_on(**slg), atol=1e-5, rtol=0)
    assert guided.nft_stats.passes.tolist() == [2, 4, 4]  # the first step has no skip-layer call
    assert forwards == [10]
    assert torch.equal(sample(guided, nft_strength=0, **slg), sample(pipe, **slg))


def test_a_skip_layer_call_of_a_step_without_push_is_not_guided_by_the_step_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slg: dict[str, Any] = {**CFG, "skip_guidance_layers": [1], "skip_layer_guidance_stop": 1.0}
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))
    alphas = iter([torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([0.0])])
    monkeypatch.setattr(Term, "alpha", lambda *args: next(alphas))
    sample(guided, **slg)
    assert guided.nft_stats.passes.tolist() == [2, 4, 2]


def test_push_is_how_far_the_predicted_picture_moves() -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, alpha=0.5))
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    one: dict[str, Any] = {"num_inference_steps": 1, "latents": start}
    v_old, v_lora = sample(pipe, **one) - start, lora_on(**one) - start
    sample(guided, nft_strength=-2.0, nft_law="nft", **one)  # tilt -4, s = -2
    # One step goes from noise (t = 1) to t = 0, so what `sample` gave are the predicted pictures themselves: x_1 - v.
    expected = 2 * (v_lora - v_old).norm() / (start + v_old).norm()
    assert guided.nft_stats.push.item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_head_without_text_and_one_with_text() -> None:
    pipe = tiny_pipe()
    for text_dim in (None, 2 * TEXT_WIDTH):
        adapter = tiny_adapter(pipe.transformer)
        adapter = type(adapter)(adapter.config, adapter.lora, random_head(16, text_dim=text_dim))
        guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
        alphas = []
        start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
        for _ in range(2):
            sample(guided, latents=start, num_inference_steps=1)
            alphas.append(guided.nft_stats.alpha.item())
        assert 0 < alphas[0] == alphas[1] < 1
        guided.unwrap()
