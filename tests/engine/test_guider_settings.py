"""Loading into the guider, its settings and its refusals, in real modular pipelines over tiny random models."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.modular_pipelines.flux.denoise import FluxDenoiseStep
from diffusers.modular_pipelines.minimax_h3.denoise import MiniMaxH3DenoiseStep

import nft_pipeline
from helpers.dials import further_dial, measured_dial
from helpers.modular import CFG, MODULAR, SD3, adapter_for, close, counter, guided, stock
from helpers.tiny import assert_same_state, state_of, tiny_adapter, tiny_transformer
from helpers.zoo import denoiser_of
from nft_pipeline.adapter import AdapterError, write_adapter
from nft_pipeline.errors import FamilyError, GuidanceError
from nft_pipeline.guider import DiffusionNFTGuidance


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
    pipe = SD3.pipe(stock(1.0))
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
