"""The guider in real modular pipelines over tiny random models: the same promises as the guided pipeline's."""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.modular_pipelines.flux.denoise import FluxDenoiseStep
from diffusers.modular_pipelines.minimax_h3.denoise import MiniMaxH3DenoiseStep
from torch import Tensor

import nft_pipeline
from helpers.dials import further_dial, measured_dial
from helpers.modular import IS_NEW, MODULAR, Modular, adapter_for, stock
from helpers.repository import ROOT
from helpers.tiny import assert_same_state, random_lora, state_of, tiny_adapter, tiny_transformer
from helpers.zoo import denoiser_of
from nft_pipeline.adapter import AdapterError, write_adapter
from nft_pipeline.errors import FamilyError, GuidanceError
from nft_pipeline.guider import DiffusionNFTGuidance

CFG = 4.0
SD3 = MODULAR["StableDiffusion3"]
STRAIGHT = {name: case for name, case in MODULAR.items() if not case.rescaled}
every_pipeline = pytest.mark.parametrize("case", MODULAR.values(), ids=MODULAR)
every_straight = pytest.mark.parametrize("case", STRAIGHT.values(), ids=STRAIGHT)
with_and_without_cfg = pytest.mark.parametrize("cfg", [1.0, CFG], ids=["cfg_free", "cfg"])
ONE = {"num_inference_steps": 1}


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, atol=1e-5 * max(1.0, expected.abs().max().item()), rtol=0)


def guided(case: Modular, pipe: Any, *, kind: str | None = None, tilt: float = 2.0, **settings: Any) -> Any:
    """A guider in the place of the pipeline's, its adapter loaded."""
    guider = DiffusionNFTGuidance(**settings)
    pipe.update_components(guider=guider)
    guider.load_nft_adapter(pipe, adapter_for(case, pipe, kind=kind, tilt=tilt))
    return guider


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


def counter(case: Modular, pipe: Any) -> list[int]:
    """Counts real forwards of the denoiser, however they are reached."""
    count: list[int] = []
    denoiser_of(pipe).get_submodule(case.first_block).register_forward_pre_hook(lambda *_: count.append(1))
    return count


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


def test_without_an_adapter_only_strength_0_runs() -> None:
    pipe = SD3.pipe(stock(CFG))
    base = SD3.sample(pipe)
    guider = DiffusionNFTGuidance(guidance_scale=CFG)
    pipe.update_components(guider=guider)
    with pytest.raises(GuidanceError, match=r'no adapter loaded\. Call guider\.load_nft_adapter\(pipe, "someone/ada'):
        SD3.sample(pipe)
    guider.nft_adapter = "shapes-warm"
    with pytest.raises(GuidanceError, match=r"it wants 'shapes-warm'\. Call guider\.load_nft_adapter\(pipe\) first"):
        SD3.sample(pipe)
    guider.nft_strength = 0
    assert torch.equal(SD3.sample(pipe), base)
    assert guider.nft_stats is None and guider.nft_config is None


def test_another_denoiser_than_the_adapters_is_refused_before_it_runs() -> None:
    pipe = SD3.pipe()
    guider = guided(SD3, pipe)
    pipe.update_components(transformer=tiny_transformer(channels=16))
    count = counter(SD3, pipe)
    with pytest.raises(GuidanceError, match=r"SD3Transformer2DModel that does not carry the adapter 'tiny'"):
        SD3.sample(pipe)
    assert not count
    guider.load_nft_adapter(pipe, adapter_for(SD3, pipe))
    SD3.sample(pipe)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nft_strength": float("nan")}, "nft_strength is nan, expected a finite number"),
        ({"nft_beta": 0}, "nft_beta is 0, expected a finite number above 0"),
        ({"nft_strength": 1, "nft_beta": 1}, "nft_strength=1 and nft_beta=1 were both given"),
        ({"nft_law": "odd"}, "nft_law is 'odd'.*Did you mean \"odds\""),
        ({"nft_law": "odds", "kind": "policy"}, 'nft_law="odds" needs a positive adapter'),
        ({"nft_interval": (999, 0)}, r"nft_interval is \(999, 0\), expected \(low, high\)"),
        ({"nft_guide": "uncond"}, "nft_guide is 'uncond', expected one of 'both', 'cond'"),
    ],
)
def test_bad_settings_are_named_when_loading_and_when_set_later(settings: dict[str, Any], message: str) -> None:
    kind = settings.pop("kind", "positive")
    pipe = SD3.pipe()
    before = state_of(denoiser_of(pipe))
    with pytest.raises(GuidanceError, match=message):
        guided(SD3, pipe, kind=kind, **settings)
    assert_same_state(before, state_of(denoiser_of(pipe)))
    guider = guided(SD3, pipe, kind=kind)
    for name, value in settings.items():
        setattr(guider, name, value)
    count = counter(SD3, pipe)
    with pytest.raises(GuidanceError, match=message):
        SD3.sample(pipe)
    assert not count


def test_loading_says_what_is_missing_and_changes_nothing() -> None:
    pipe = SD3.pipe()
    guider = guided(SD3, pipe, kind="policy")
    expected, before = SD3.sample(pipe), state_of(denoiser_of(pipe))
    good = adapter_for(SD3, pipe)
    with pytest.raises(GuidanceError, match="load_nft_adapter got no source"):
        guider.load_nft_adapter(pipe)
    with pytest.raises(GuidanceError, match=r"for the pipeline's 'unet', and this StableDiffusion3ModularPipeline has"):
        guider.load_nft_adapter(pipe, adapter_for(SD3, pipe, component="unet"))
    with pytest.raises(AdapterError, match="was made for another base model"):
        guider.load_nft_adapter(pipe, tiny_adapter(tiny_transformer(layers=1)))
    with pytest.raises(FamilyError, match="the denoiser is a Linear"):
        guider.load_nft_adapter(torch.nn.Linear(1, 1), good)
    assert_same_state(before, state_of(denoiser_of(pipe)))
    assert torch.equal(SD3.sample(pipe), expected)


@pytest.mark.parametrize("blocks", [MiniMaxH3DenoiseStep, FluxDenoiseStep])
def test_a_pipeline_that_asks_no_guider_is_refused(blocks: Any) -> None:
    pipe = blocks().init_pipeline()
    with pytest.raises(GuidanceError, match=rf"this {type(pipe).__name__} asks no guider what to run.*transformer"):
        DiffusionNFTGuidance().load_nft_adapter(pipe, adapter_for(SD3, SD3.pipe()))


def test_an_adapter_takes_the_place_of_the_one_before() -> None:
    pipe = SD3.pipe()
    before = state_of(denoiser_of(pipe))
    guider = guided(SD3, pipe, kind="policy")
    first = SD3.sample(pipe)
    guider.load_nft_adapter(denoiser_of(pipe), adapter_for(SD3, pipe, kind="policy", seed=8))
    assert not torch.allclose(SD3.sample(pipe), first, atol=1e-4)
    name = guider._loaded.entry.loras["transformer"]
    denoiser_of(pipe).delete_adapters([name])  # as a user may, not knowing whose it is
    with pytest.raises(AdapterError, match=f"the {name} LoRA is on 0 layers"):
        SD3.sample(pipe)
    guider.load_nft_adapter(pipe, adapter_for(SD3, pipe, kind="policy"))
    close(SD3.sample(pipe), first)
    guider.unload_nft_adapter()
    assert_same_state(before, state_of(denoiser_of(pipe)))


def test_a_unet_needs_the_pipeline_whose_scheduler_names_the_noise_level() -> None:
    case = MODULAR["StableDiffusionXL"]
    pipe = case.pipe()
    guider = guided(case, pipe)
    case.sample(pipe)
    guider.load_nft_adapter(pipe.unet, adapter_for(case, pipe))
    with pytest.raises(FamilyError, match="cannot tell the noise level of a timestep"):
        case.sample(pipe)


def test_the_scale_of_a_call_is_for_the_users_own_loras() -> None:
    pipe = styled(SD3, False, 1.0)
    guided(SD3, pipe)
    plain = SD3.sample(pipe)
    close(SD3.sample(pipe, joint_attention_kwargs={"scale": 0.5}), plain)
    with pytest.raises(GuidanceError, match=r'joint_attention_kwargs=\{"scale": 0\} switches every LoRA off'):
        SD3.sample(pipe, joint_attention_kwargs={"scale": 0})


def test_a_head_that_cannot_answer_is_a_named_error() -> None:
    pipe = SD3.pipe()
    guider = guided(SD3, pipe)
    adapter = adapter_for(SD3, pipe)
    adapter.head.config = replace(adapter.head.config, tap="nowhere")
    with pytest.raises(GuidanceError, match="reads the module 'nowhere'"):
        guider.load_nft_adapter(pipe, adapter)
    with torch.no_grad():
        guider._loaded.entry.adapter.head.attention_out.bias.fill_(math.nan)
    with pytest.raises(GuidanceError, match=r"the alpha head of 'tiny' gave \[nan\].*expected probabilities"):
        SD3.sample(pipe)


# The guider as an object


def test_nft_stats_are_of_the_last_call() -> None:
    pipe = SD3.pipe()
    guider = guided(SD3, pipe, guidance_scale=CFG)
    assert guider.nft_stats is None
    for steps in (2, 5, 1):
        SD3.sample(pipe, [0, 1], num_inference_steps=steps)
        stats = guider.nft_stats
        assert stats.steps == steps and stats.forwards == 4 * steps
        assert stats.push.shape == (steps, 2) and stats.push.min() > 0


def test_guider_config_round_trip(tmp_path: Path) -> None:
    pipe = SD3.pipe()
    write_adapter(tmp_path / "adapter", adapter_for(SD3, pipe))
    source = str(tmp_path / "adapter")
    guider = DiffusionNFTGuidance(
        source, nft_beta=0.7, nft_law="odds", nft_interval=(0.2, 0.9), nft_guide="cond", guidance_scale=CFG, start=0.1
    )
    pipe.update_components(guider=guider)
    guider.load_nft_adapter(pipe)
    guider.guidance_rescale = 0.3  # set later, and saved all the same
    expected = SD3.sample(pipe)
    guider.save_pretrained(tmp_path)
    assert (tmp_path / "guider_config.json").is_file()
    guider.unload_nft_adapter()

    again = DiffusionNFTGuidance.from_pretrained(tmp_path)
    assert again.config["_class_name"] == "DiffusionNFTGuidance" and again.nft_adapter == source
    assert (again.nft_beta, again.nft_law, tuple(again.nft_interval)) == (0.7, "odds", (0.2, 0.9))
    assert (again.nft_strength, again.nft_guide, again.guidance_rescale, again._start) == (None, "cond", 0.3, 0.1)
    pipe.update_components(guider=again)
    with pytest.raises(GuidanceError, match=f"it wants '{source}'"):
        SD3.sample(pipe)
    again.load_nft_adapter(pipe)
    assert torch.equal(SD3.sample(pipe), expected)


def test_the_config_names_what_was_loaded_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = SD3.pipe()
    write_adapter(tmp_path / "shapes-warm", adapter_for(SD3, pipe))
    monkeypatch.chdir(tmp_path)
    guider = DiffusionNFTGuidance("elsewhere")
    guider.load_nft_adapter(pipe, Path("shapes-warm"))
    assert guider.nft_adapter == os.path.join(".", "shapes-warm")
    guider.load_nft_adapter(pipe)  # the folder again, not the shipped adapter of that name
    guider.load_nft_adapter(pipe, adapter_for(SD3, pipe))
    assert guider.nft_adapter is None, "an adapter in memory has no source"


def test_new_is_the_same_guider_with_other_settings() -> None:
    pipe = SD3.pipe(stock(CFG))
    base = SD3.sample(pipe)
    guider = guided(SD3, pipe, guidance_scale=1.0)
    guider.guidance_scale = CFG
    result = SD3.sample(pipe)
    pipe.update_components(guider=guider.new(nft_strength=0))
    assert torch.equal(SD3.sample(pipe), base)
    pipe.update_components(guider=pipe.guider.new(nft_strength=1.0))
    assert torch.equal(SD3.sample(pipe), result)
    assert guider.new(nft_adapter="another").nft_config is None


def test_exported_when_first_used() -> None:
    assert nft_pipeline.DiffusionNFTGuidance is DiffusionNFTGuidance
    assert "DiffusionNFTGuidance" in nft_pipeline.__all__


def test_a_rate_and_the_own_mode_go_through_the_calibration() -> None:
    pipe = SD3.pipe()
    adapter = adapter_for(SD3, pipe, kind="positive", tilt=2.0)
    adapter = replace(adapter, config=replace(adapter.config, dial=measured_dial()))
    latents = {}
    for name, settings in (("rate", {"nft_rate": 0.7}), ("strength", {"nft_strength": 1.0})):
        guider = DiffusionNFTGuidance(**settings)
        pipe.update_components(guider=guider)
        guider.load_nft_adapter(pipe, adapter)
        latents[name] = SD3.sample(pipe)
        assert guider.nft_stats.forwards == guider.nft_stats.steps, "one pass, as its calibration found best"
        assert guider.new().nft_rate == guider.nft_rate
        guider.unload_nft_adapter()
    close(latents["rate"], latents["strength"])
    guider.nft_rate = 0.5
    with pytest.raises(GuidanceError, match=r"nft_rate=0\.5 and nft_strength were both given"):
        guider.load_nft_adapter(pipe, adapter)


def test_the_own_mode_goes_by_the_tilt_that_is_asked_for() -> None:
    pipe = SD3.pipe()
    adapter = adapter_for(SD3, pipe, kind="policy", tilt=2.0)
    adapter = replace(adapter, config=replace(adapter.config, dial=further_dial()))
    for settings, per_step in (
        ({"nft_strength": 2.0}, 1),
        ({"nft_strength": 3.0}, 2),
        ({"nft_rate": 0.9}, 1),
        ({"nft_rate": 0.95}, 2),
        ({"nft_strength": 3.0, "nft_mode": "single"}, 1),
    ):
        guider = DiffusionNFTGuidance(**settings)
        pipe.update_components(guider=guider)
        guider.load_nft_adapter(pipe, adapter)
        SD3.sample(pipe)
        assert guider.nft_stats.forwards == per_step * guider.nft_stats.steps, settings
        guider.unload_nft_adapter()
