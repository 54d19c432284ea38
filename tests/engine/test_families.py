"""Every family through its real pipeline class: the same promises as for Stable Diffusion 3."""

from __future__ import annotations

import re
from typing import Any

import diffusers
import pytest
import torch

from helpers.repository import ROOT
from helpers.tiny import assert_same_state, state_of
from helpers.zoo import CASES, Case, adapter_for, denoiser_of, load_ordinarily, lora_for
from nft_pipeline.families import FAMILIES, FamilyError, family_of
from nft_pipeline.pipeline import DiffusionNFTPipeline

every_pipeline = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
with_and_without_cfg = pytest.mark.parametrize("cfg", [False, True], ids=["cfg_free", "cfg"])


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-5 of the largest value: DDIM's first step blows latents up by the inverse of a small number."""
    torch.testing.assert_close(ours, expected, atol=1e-5 * max(1.0, expected.abs().max().item()), rtol=0)


def styled(case: Case, style: bool) -> Any:
    pipe = case.pipe()
    if style:
        load_ordinarily(pipe, lora_for(pipe, seed=99), "style", ["style"])
    return pipe


def lora_on(case: Case, style: bool, **call: Any) -> torch.Tensor:
    pipe = styled(case, style)
    load_ordinarily(pipe, lora_for(pipe), "nft_as_lora", [*(["style"] if style else []), "nft_as_lora"])
    return case.sample(pipe, **call)


def test_every_family_has_a_case() -> None:
    assert {family_of(denoiser_of(case.pipe())).denoiser for case in CASES.values()} == set(FAMILIES)


def test_the_page_lists_the_pipelines_tested_here() -> None:
    page = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\w+Pipeline) \| (\w+) \|", page, re.MULTILINE)
    pipes = [case.pipe() for case in CASES.values()]
    assert set(listed) == {(type(pipe).__name__, type(denoiser_of(pipe)).__name__) for pipe in pipes}


@every_pipeline
@with_and_without_cfg
@pytest.mark.parametrize("style", [False, True], ids=["alone", "with_style"])
def test_strength_0_is_stock_and_policy_at_1_is_the_lora_on(case: Case, cfg: bool, style: bool) -> None:
    pipe = styled(case, style)
    stock = case.sample(pipe, cfg=cfg)
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(case, pipe, kind="policy"))
    assert torch.equal(case.sample(guided, cfg=cfg, nft_strength=0), stock)
    expected = lora_on(case, style, cfg=cfg)
    assert (expected - stock).abs().max() > 1e-3 * stock.abs().max()
    close(case.sample(guided, cfg=cfg), expected)
    assert torch.equal(case.sample(pipe, cfg=cfg), stock), "the user's own pipeline"


@every_pipeline
def test_linear_in_strength_on_one_forward(case: Case) -> None:
    pipe = case.pipe()
    one = {"num_inference_steps": 1}
    base = case.sample(pipe, **one)
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(case, pipe))
    once = case.sample(guided, **one) - base
    assert once.abs().max() > 1e-4 * base.abs().max()
    for strength in (-1.5, 0.5, 2.0):
        close(case.sample(guided, nft_strength=strength, **one) - base, strength * once)


@every_pipeline
@with_and_without_cfg
def test_alpha_is_one_a_sample_and_the_conditional_rows(case: Case, cfg: bool) -> None:
    pipe = case.pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(case, pipe, tilt=4.0))
    batch = case.sample(guided, [0, 1, 2], cfg=cfg)
    stats = guided.nft_stats
    assert stats.steps == 3, "the unconditional call is part of its step"
    assert stats.alpha.shape == (3, 3) and stats.alpha[0].std() > 1e-3
    for i in range(3):
        close(case.sample(guided, [i], cfg=cfg), batch[i : i + 1])
        torch.testing.assert_close(guided.nft_stats.alpha[:, 0], stats.alpha[:, i], atol=1e-4, rtol=0)
    if cfg:  # both rows get the alpha that the conditional row has without classifier-free guidance
        case.sample(guided, [0, 1, 2])
        torch.testing.assert_close(guided.nft_stats.alpha[0], stats.alpha[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    # QwenImagePipeline rescales what classifier-free guidance gives by a ratio of norms, which no line survives.
    "case",
    [case for name, case in CASES.items() if name != "QwenImagePipeline"],
    ids=[name for name in CASES if name != "QwenImagePipeline"],
)
def test_guidance_and_classifier_free_guidance_commute(case: Case) -> None:
    """One scale a sample for both rows, so the result lies between the two stock results under the same CFG."""
    pipe, call = case.pipe(), {"cfg": True, "num_inference_steps": 1}
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(case, pipe, tilt=0.9))
    result, base = case.sample(guided, **call), case.sample(guided, nft_strength=0, **call)
    case.sample(guided, **call)
    scale = guided.nft_stats.scale.item()
    assert 0.01 < scale < 0.9
    close(result, base + scale * (lora_on(case, False, **call) - base))


@every_pipeline
@with_and_without_cfg
def test_a_guided_step_is_two_forwards_for_each_of_the_pipelines_own(case: Case, cfg: bool) -> None:
    pipe = case.pipe()
    denoiser = denoiser_of(pipe)
    own = []
    hook = denoiser.register_forward_hook(lambda *_: own.append(1))
    case.sample(pipe, cfg=cfg)
    hook.remove()
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(case, pipe))
    case.sample(guided, cfg=cfg)
    assert guided.nft_stats.forwards == 2 * len(own)
    case.sample(guided, cfg=cfg, nft_strength=0)
    assert guided.nft_stats.forwards == len(own)


@every_pipeline
def test_noise_level_falls_from_noise_to_picture(case: Case) -> None:
    pipe = case.pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(case, pipe))
    case.sample(guided, num_inference_steps=8)
    levels = guided.nft_stats.noise_level[:, 0]
    assert levels.diff().max() < 0 and 0.8 < levels[0] <= 1 and 0 < levels[-1] < 0.5
    case.sample(guided, num_inference_steps=8, nft_interval=(0.3, 0.7))
    stats = guided.nft_stats
    inside = (stats.noise_level[:, 0] >= 0.3) & (stats.noise_level[:, 0] <= 0.7)
    assert inside.any() and not inside.all()
    assert torch.equal(stats.passes, torch.where(inside, 2, 1))


@every_pipeline
def test_nothing_is_left_behind_by_an_exception_in_the_middle(case: Case) -> None:
    pipe = styled(case, style=True)
    denoiser = denoiser_of(pipe)
    expected, before = case.sample(pipe), state_of(denoiser)  # a first call leaves diffusers' own caches behind
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(case, pipe))
    loaded = state_of(denoiser)

    def stop(*_: Any) -> dict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.sample(guided, callback_on_step_end=stop)
    assert_same_state(loaded, state_of(denoiser))
    guided.unwrap()
    assert_same_state(before, state_of(denoiser))
    assert torch.equal(case.sample(pipe), expected)


def test_noise_level_of_a_variance_preserving_model_is_that_of_its_scheduler() -> None:
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(7)
    unet = FAMILIES["UNet2DConditionModel"]
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        level = unet.noise_level({"sample": torch.zeros(2, 4, 8, 8), "timestep": timestep}, scheduler)
        torch.testing.assert_close(level, (sigma / (1 + sigma)).expand(2), atol=1e-3, rtol=0)


def test_a_schedule_that_ends_in_pure_noise_has_noise_level_1_there() -> None:
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True)
    level = FAMILIES["UNet2DConditionModel"].noise_level
    assert level({"sample": torch.zeros(1, 4, 8, 8), "timestep": torch.tensor(999)}, scheduler).tolist() == [1.0]
    assert 0.9 < level({"sample": torch.zeros(1, 4, 8, 8), "timestep": 998.5}, scheduler).item() < 1


def test_pipelines_whose_rows_cannot_be_told_apart_are_refused() -> None:
    case = CASES["StableDiffusionPipeline"]
    adapter = adapter_for(case, case.pipe())
    parts = case.pipe().components
    perturbed = diffusers.StableDiffusionPAGPipeline(**parts, requires_safety_checker=False, pag_applied_layers="mid")
    with pytest.raises(FamilyError, match=r"StableDiffusionPAGPipeline cannot be guided.*adds rows of its own"):
        DiffusionNFTPipeline.from_pipe(perturbed, adapter)


def test_a_scheduler_without_noise_levels_is_a_named_error() -> None:
    with pytest.raises(FamilyError, match="FlowMatchEulerDiscreteScheduler, expected one with alpha"):
        FAMILIES["UNet2DConditionModel"].noise_level(
            {"sample": torch.zeros(1, 4, 8, 8), "timestep": 1}, diffusers.FlowMatchEulerDiscreteScheduler()
        )
