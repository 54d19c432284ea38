"""The guider in real modular pipelines over tiny random models: the same promises as the guided pipeline's."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.modular import CFG, IS_NEW, MODULAR, SD3, Modular, close, counter, guided, stock
from helpers.repository import ROOT
from helpers.tiny import assert_same_state, random_lora, state_of
from helpers.zoo import denoiser_of

STRAIGHT = {name: case for name, case in MODULAR.items() if not case.rescaled}
every_pipeline = pytest.mark.parametrize("case", MODULAR.values(), ids=MODULAR)
every_straight = pytest.mark.parametrize("case", STRAIGHT.values(), ids=STRAIGHT)
with_and_without_cfg = pytest.mark.parametrize("cfg", [1.0, CFG], ids=["cfg_free", "cfg"])
ONE = {"num_inference_steps": 1}


def load_ordinarily(pipe: Any, seed: int, name: str, active: list[str]) -> None:
    """What a user does with a LoRA of their own."""
    denoiser_of(pipe).load_lora_adapter(
        random_lora(denoiser_of(pipe), seed=seed), prefix="transformer", adapter_name=name
    )
    denoiser_of(pipe).set_adapters(active)


def styled(case: Modular, style: bool, guidance_scale: float) -> Any:
    pipe = case.pipe(stock(guidance_scale))
    if style:
        load_ordinarily(pipe, 99, "style", ["style"])
    return pipe


def lora_on(case: Modular, style: bool, guidance_scale: float, **call: Any) -> Tensor:
    pipe = styled(case, style, guidance_scale)
    load_ordinarily(pipe, 7, "nft_as_lora", [*(["style"] if style else []), "nft_as_lora"])
    return case.sample(pipe, **call)


def test_the_page_lists_the_pipelines_tested_here() -> None:
    page = (ROOT / "docs" / "modular.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\w+)ModularPipeline \| (\w+) \|$", page, re.MULTILINE)
    tested = {(name, type(denoiser_of(case.pipe())).__name__) for name, case in MODULAR.items()}
    assert set(listed) == tested if IS_NEW else set(listed) > tested


# Exactness


@every_pipeline
@with_and_without_cfg
@pytest.mark.parametrize("style", [False, True], ids=["alone", "with_style"])
def test_strength_0_is_stock_and_policy_at_1_is_the_lora_on(case: Modular, cfg: float, style: bool) -> None:
    pipe = styled(case, style, cfg)
    base = case.sample(pipe)
    guider = guided(case, pipe, kind="policy", nft_strength=0, guidance_scale=cfg)
    assert torch.equal(case.sample(pipe), base)
    guider.nft_strength = 1.0
    expected = lora_on(case, style, cfg)
    assert (expected - base).abs().max() > 1e-3 * base.abs().max()
    close(case.sample(pipe), expected)
    pipe.update_components(guider=stock(cfg))
    assert torch.equal(case.sample(pipe), base), "the adapter is loaded, and inactive for everybody else"


@every_pipeline
def test_strength_0_of_a_positive_adapter_is_stock_with_all_that_the_stock_guider_can_do(case: Modular) -> None:
    options = {"guidance_scale": 3.0, "guidance_rescale": 0.5, "use_original_formulation": True, "stop": 0.7}
    pipe = case.pipe(stock(**options))
    base = case.sample(pipe, [0, 1])
    guider = guided(case, pipe, nft_strength=0, **options)
    assert torch.equal(case.sample(pipe, [0, 1]), base)
    guider.nft_strength = 1.0
    assert not torch.allclose(case.sample(pipe, [0, 1]), base, atol=1e-4)


@pytest.mark.parametrize(
    # StableDiffusionXL's blocks switch every guider on again.
    "case",
    [case for name, case in MODULAR.items() if name != "StableDiffusionXL"],
    ids=[name for name in MODULAR if name != "StableDiffusionXL"],
)
def test_disabled_is_the_base_without_either_guidance(case: Modular) -> None:
    pipe = case.pipe(stock(1.0))
    base = case.sample(pipe)
    guided(case, pipe, guidance_scale=CFG).disable()
    count = counter(case, pipe)
    assert torch.equal(case.sample(pipe), base)
    assert len(count) == 3


@every_pipeline
def test_linear_in_strength_on_one_forward(case: Modular) -> None:
    pipe = case.pipe()
    base = case.sample(pipe, **ONE)
    guider = guided(case, pipe, nft_law="nft")
    once = case.sample(pipe, **ONE) - base
    assert once.abs().max() > 1e-4 * base.abs().max()
    for strength in (-1.5, 0.5, 2.0):
        guider.nft_strength = strength
        close(case.sample(pipe, **ONE) - base, strength * once)


@every_straight
def test_both_commutes_with_classifier_free_guidance(case: Modular) -> None:
    """One scale per sample for both rows, so the result lies between the two stock results under the same CFG."""
    pipe = case.pipe(stock(CFG))
    base = case.sample(pipe, **ONE)
    guider = guided(case, pipe, tilt=4.0, guidance_scale=CFG)
    result = case.sample(pipe, **ONE)
    scale = guider.nft_stats.scale.item()
    assert 0.01 < scale < 4
    close(result, base + scale * (lora_on(case, False, CFG, **ONE) - base))


@every_straight
def test_cond_pushes_by_guidance_scale_times_the_push_without(case: Modular) -> None:
    pipe = case.pipe(stock(CFG))
    base_with = case.sample(pipe, **ONE)
    pipe.update_components(guider=stock(1.0))
    base_without = case.sample(pipe, **ONE)
    guider = guided(case, pipe, nft_guide="cond")
    without = case.sample(pipe, **ONE) - base_without
    guider.guidance_scale = CFG
    close(case.sample(pipe, **ONE) - base_with, CFG * without)


def test_beta_and_the_odds_law_are_the_guided_pipelines() -> None:
    pipe = SD3.pipe()
    guider = guided(SD3, pipe, tilt=2.0, nft_beta=0.5, nft_law="nft")
    SD3.sample(pipe, [0, 1])
    torch.testing.assert_close(guider.nft_stats.scale, 4 * guider.nft_stats.alpha)
    guider.nft_beta = None
    for law in ("odds", None):  # None is the law of the adapter's kind, without a calibration
        guider.nft_law = law
        SD3.sample(pipe, [0, 1])
        odds = math.expm1(2.0) * guider.nft_stats.alpha
        torch.testing.assert_close(guider.nft_stats.scale, odds / (1 + odds))


def test_a_policy_guides_a_list_of_predictions_sample_by_sample() -> None:
    case = MODULAR["ZImage"]
    pipe = case.pipe()
    guided(case, pipe, kind="policy", nft_strength=0.5, guidance_scale=CFG)
    batch = case.sample(pipe, [0, 1, 2])
    for i in range(3):
        close(case.sample(pipe, [i]), batch[i : i + 1])


# Alpha, the interval and the cost


@every_pipeline
@with_and_without_cfg
def test_alpha_is_one_a_sample_and_the_conditional_rows(case: Modular, cfg: float) -> None:
    pipe = case.pipe()
    guider = guided(case, pipe, tilt=4.0, guidance_scale=cfg)
    batch = case.sample(pipe, [0, 1, 2])
    stats = guider.nft_stats
    assert stats.alpha.shape == (3, 3) and stats.alpha[0].std() > 1e-3
    for i in range(3):
        close(case.sample(pipe, [i]), batch[i : i + 1])
        torch.testing.assert_close(guider.nft_stats.alpha[:, 0], stats.alpha[:, i], atol=1e-4, rtol=0)
    guider.guidance_scale = 1.0
    case.sample(pipe, [0, 1, 2])
    torch.testing.assert_close(guider.nft_stats.alpha[0], stats.alpha[0], atol=1e-5, rtol=0)


@every_pipeline
@pytest.mark.parametrize(
    ("settings", "forwards"),
    [
        ({}, 2),
        ({"guidance_scale": CFG}, 4),
        ({"guidance_scale": CFG, "nft_guide": "cond"}, 3),
        ({"guidance_scale": CFG, "nft_strength": 0}, 2),
        ({"nft_strength": 0}, 1),
        ({"nft_interval": (0.0, 0.0)}, 1),
        ({"guidance_scale": CFG, "nft_interval": (0.0, 0.0)}, 2),
    ],
    ids=["alone", "cfg_both", "cfg_cond", "cfg_strength_0", "strength_0", "outside", "cfg_outside"],
)
def test_forwards_of_a_step(case: Modular, settings: dict[str, Any], forwards: int) -> None:
    pipe = case.pipe()
    guider = guided(case, pipe, **settings)
    count = counter(case, pipe)
    case.sample(pipe, num_inference_steps=2)
    assert len(count) == 2 * forwards
    assert guider.nft_stats.passes.tolist() == [forwards, forwards]


@every_pipeline
def test_the_interval_is_in_noise_level(case: Modular) -> None:
    pipe = case.pipe(stock(CFG))
    base = case.sample(pipe)
    guider = guided(case, pipe, guidance_scale=CFG, nft_interval=(0.0, 0.0))
    assert torch.equal(case.sample(pipe), base), "no step is at noise level 0"
    guider.nft_interval = (0.3, 0.7)
    case.sample(pipe, num_inference_steps=8)
    stats = guider.nft_stats
    levels = stats.noise_level[:, 0]
    assert levels.diff().max() < 0 and levels[0] > 0.9 and levels[-1] < 0.5
    inside = (levels >= 0.3) & (levels <= 0.7)
    assert inside.any() and not inside.all()
    assert torch.equal(stats.passes, torch.where(inside, 4, 2))


@every_pipeline
def test_start_and_stop_bound_classifier_free_guidance_alone(case: Modular) -> None:
    pipe = case.pipe()
    guider = guided(case, pipe, guidance_scale=CFG, start=0.5)
    case.sample(pipe, num_inference_steps=4)
    assert guider.nft_stats.passes.tolist() == [2, 2, 4, 4]


def test_qwen_image_keeps_the_norm_of_the_guided_conditional_prediction() -> None:
    """QwenImage rescales what CFG gives to the norm of pred_cond, token by token: it has to be the guided one."""
    case = MODULAR["QwenImage"]
    pipe = case.pipe()
    noise = case.call([0])["latents"]
    patches = pipe.pachifier.pack_latents

    def lengths() -> Tensor:
        return (patches(case.sample(pipe, **ONE)) - noise).norm(dim=-1)

    base = lengths()
    guider = guided(case, pipe, kind="policy", nft_strength=3.0)
    without = lengths()
    assert (without - base).abs().max() > 0.1
    guider.guidance_scale = CFG
    torch.testing.assert_close(lengths(), without, atol=1e-4, rtol=1e-4)


# What is left behind, and what goes wrong


@every_pipeline
def test_the_denoiser_is_untouched_after_a_call_and_after_unloading(case: Modular) -> None:
    pipe = styled(case, True, 1.0)
    expected, before = case.sample(pipe), state_of(denoiser_of(pipe))
    guider = guided(case, pipe, guidance_scale=CFG)
    loaded = state_of(denoiser_of(pipe))
    case.sample(pipe)
    assert_same_state(loaded, state_of(denoiser_of(pipe)))
    guider.unload_nft_adapter()
    assert_same_state(before, state_of(denoiser_of(pipe)))
    pipe.update_components(guider=stock(1.0))
    assert torch.equal(case.sample(pipe), expected)


@every_pipeline
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("forward", [1, 2, 3, 4], ids=["cond_base", "cond_lora", "uncond_base", "uncond_lora"])
def test_an_exception_in_a_forward_leaves_nothing_behind(case: Modular, error: Any, forward: int) -> None:
    pipe = styled(case, True, CFG)
    guider = guided(case, pipe, guidance_scale=CFG)
    expected, before = case.sample(pipe), state_of(denoiser_of(pipe))
    seen: list[int] = []

    def stop(*_: Any) -> None:
        seen.append(1)
        if len(seen) == 4 + forward:  # in the second step
            raise error("stop")

    hook = denoiser_of(pipe).get_submodule(case.first_block).register_forward_pre_hook(stop)
    with pytest.raises(error):
        case.sample(pipe)
    hook.remove()
    assert guider.nft_stats.steps == (1 if forward <= 2 else 2), "what happened until then"
    if error is RuntimeError:
        assert_same_state(before, state_of(denoiser_of(pipe)))
    # An interrupt in a base pass goes past the hooks, which take themselves off when someone calls the denoiser next.
    pipe.update_components(guider=stock(CFG))
    case.sample(pipe)
    assert_same_state(before, state_of(denoiser_of(pipe)))
    pipe.update_components(guider=guider)
    assert torch.equal(case.sample(pipe), expected)


def test_hooks_left_by_an_interrupt_do_not_guide_the_next_caller() -> None:
    pipe = SD3.pipe(stock(CFG))
    base = SD3.sample(pipe)
    guided(SD3, pipe, guidance_scale=CFG)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = denoiser_of(pipe).norm_out.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        SD3.sample(pipe)
    hook.remove()
    pipe.update_components(guider=stock(CFG))
    assert torch.equal(SD3.sample(pipe), base)
