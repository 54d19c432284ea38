"""Our guider over each of diffusers' own: what the other one combines are predictions of a guided model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers.guiders as guiders
import pytest
import torch
from diffusers.hooks import LayerSkipConfig
from diffusers.hooks.smoothed_energy_guidance_utils import SmoothedEnergyGuidanceConfig
from torch import Tensor

from helpers.modular import MODULAR, Modular, adapter_for, stock
from helpers.tiny import assert_same_state, random_lora, state_of
from helpers.zoo import CASES, denoiser_of, load_ordinarily, lora_for
from helpers.zoo import adapter_for as zoo_adapter_for
from nft_pipeline.errors import GuidanceError
from nft_pipeline.guider import DiffusionNFTGuidance
from nft_pipeline.guiders.other_guider import known_guiders
from nft_pipeline.guiders.same_randomness import SameRandomness
from nft_pipeline.pipeline import DiffusionNFTPipeline


def _skip(**kwargs: Any) -> LayerSkipConfig:
    return LayerSkipConfig([0], fqn="auto", **kwargs)


# Each of diffusers' guiders, over a pipeline where diffusers itself can run it: not all layers can be skipped in all
# models, MagnitudeAwareGuidance needs predictions of three dimensions, and AutoGuidance is here both ways.
GUIDERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "AdaptiveProjectedGuidance": (
        "StableDiffusion3",
        lambda: guiders.AdaptiveProjectedGuidance(3.0, adaptive_projected_guidance_momentum=-0.5, eta=0.3),
    ),
    "AdaptiveProjectedMixGuidance": (
        "StableDiffusion3",
        lambda: guiders.AdaptiveProjectedMixGuidance(3.0, adaptive_projected_guidance_start_step=1),
    ),
    "AutoGuidance": ("Wan", lambda: guiders.AutoGuidance(3.0, auto_guidance_config=_skip())),
    "AutoGuidance, random": ("Wan", lambda: guiders.AutoGuidance(3.0, auto_guidance_config=_skip(dropout=0.5))),
    "ClassifierFreeGuidance": ("StableDiffusion3", lambda: guiders.ClassifierFreeGuidance(3.0)),
    "ClassifierFreeZeroStarGuidance": (
        "StableDiffusion3",
        lambda: guiders.ClassifierFreeZeroStarGuidance(3.0, zero_init_steps=0),
    ),
    "FrequencyDecoupledGuidance": ("StableDiffusion3", lambda: guiders.FrequencyDecoupledGuidance([4.0, 2.0])),
    "LTX2Guidance": ("StableDiffusion3", lambda: guiders.LTX2Guidance(3.0)),
    "MagnitudeAwareGuidance": ("QwenImage", lambda: guiders.MagnitudeAwareGuidance(3.0)),
    "PerturbedAttentionGuidance": (
        "QwenImage",
        lambda: guiders.PerturbedAttentionGuidance(
            3.0,
            perturbed_guidance_start=0.0,
            perturbed_guidance_stop=1.0,
            perturbed_guidance_config=_skip(skip_attention=False, skip_attention_scores=True, skip_ff=False),
        ),
    ),
    "SkipLayerGuidance": (
        "Wan",
        lambda: guiders.SkipLayerGuidance(
            3.0, skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0, skip_layer_config=_skip()
        ),
    ),
    "SmoothedEnergyGuidance": (
        "StableDiffusion3",
        lambda: guiders.SmoothedEnergyGuidance(3.0, seg_guidance_config=SmoothedEnergyGuidanceConfig([0])),
    ),
    "TangentialClassifierFreeGuidance": ("StableDiffusion3", lambda: guiders.TangentialClassifierFreeGuidance(3.0)),
}
NEEDS = {"FrequencyDecoupledGuidance": "kornia"}
every_guider = pytest.mark.parametrize(
    ("case", "make"),
    [
        pytest.param(
            MODULAR[case],
            make,
            id=name,
            marks=pytest.mark.skipif(
                name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None,
                reason=f"diffusers makes it with the package {NEEDS.get(name)} only",
            ),
        )
        for name, (case, make) in GUIDERS.items()
    ],
)


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, atol=1e-5 * max(1.0, expected.abs().max().item()), rtol=0)


def sample(case: Modular, pipe: Any, indices: list[int] | None = None, **call: Any) -> Tensor:
    """With the same random numbers each time: AutoGuidance draws masks in a forward."""
    torch.manual_seed(5)
    return case.sample(pipe, indices, **call)


def with_lora(case: Modular, guider: Any) -> Any:
    pipe = case.pipe(guider)
    denoiser = denoiser_of(pipe)
    denoiser.load_lora_adapter(random_lora(denoiser, seed=7), prefix="transformer", adapter_name="as_lora")
    denoiser.set_adapters(["as_lora"])
    return pipe


def guided(case: Modular, pipe: Any, *, kind: str = "policy", tilt: float = 2.0, **settings: Any) -> Any:
    guider = DiffusionNFTGuidance(**settings)
    pipe.update_components(guider=guider)
    guider.load_nft_adapter(pipe, adapter_for(case, pipe, kind=kind, tilt=tilt))
    return guider


def record(guider: Any) -> list[dict[str, Tensor]]:
    """The predictions that a guider combines, from now on."""
    seen: list[dict[str, Tensor]] = []
    forward = guider.forward

    def recording(**predictions: Tensor) -> Any:
        seen.append({name: value.clone() for name, value in predictions.items()})
        return forward(**predictions)

    guider.forward = recording
    return seen


def always(guider: Any) -> Any:
    """A guider that skips layers in a call's first step too, which diffusers' do not."""
    for name in ("_is_slg_enabled", "_is_seg_enabled"):
        if hasattr(guider, name):
            setattr(guider, name, lambda: True)
    return guider


def test_every_guider_of_this_diffusers_is_here() -> None:
    assert {name.partition(",")[0] for name in GUIDERS} == set(known_guiders())


@every_guider
def test_strength_0_is_the_other_guider_and_a_policy_at_1_is_the_lora_loaded(
    case: Modular, make: Callable[[], Any]
) -> None:
    pipe = case.pipe(make())
    base = sample(case, pipe)
    guider = guided(case, pipe, nft_strength=0, guider=make())
    before = state_of(denoiser_of(pipe))
    assert torch.equal(sample(case, pipe), base)
    expected = sample(case, with_lora(case, make()))
    assert (expected - base).abs().max() > 1e-3 * base.abs().max()
    guider.nft_strength = 1.0
    close(sample(case, pipe), expected)
    guider.nft_strength = 1 - 1e-6
    close(sample(case, pipe), expected)
    assert guider.nft_stats.passes[-1] == 2 * guider.num_conditions
    assert_same_state(before, state_of(denoiser_of(pipe)))


@every_guider
def test_the_other_guider_is_shown_predictions_of_the_guided_model(case: Modular, make: Callable[[], Any]) -> None:
    """v_old + s (v_lora - v_old) for each prediction it asks for, also for those with layers skipped or at random."""
    shown = []
    for pipe in (case.pipe(always(make())), with_lora(case, always(make()))):
        shown.append(record(pipe.guider))
        sample(case, pipe, num_inference_steps=1)
    pipe = case.pipe()
    guider = guided(case, pipe, nft_strength=0.3, guider=always(make()))
    ours = record(guider.guider)
    sample(case, pipe, num_inference_steps=1)
    ((old,), (lora,), (mixed,)) = (*shown, ours)
    assert mixed.keys() == old.keys()
    for name, value in mixed.items():
        close(value, old[name] + 0.3 * (lora[name] - old[name]))


@every_guider
def test_alpha_is_that_of_the_conditional_forward_under_any_guider(case: Modular, make: Callable[[], Any]) -> None:
    pipe = case.pipe()
    guider = guided(case, pipe, kind="positive", tilt=4.0, guidance_scale=1.0)
    sample(case, pipe, [0, 1])
    alone = guider.nft_stats.alpha[0]
    guider = guided(case, pipe, kind="positive", tilt=4.0, guider=make())
    both = sample(case, pipe, [0, 1])
    stats = guider.nft_stats
    assert stats.alpha.shape == (3, 2) and alone.std() > 1e-4
    torch.testing.assert_close(stats.alpha[0], alone, atol=1e-5, rtol=0)
    if not isinstance(guider.guider, guiders.AutoGuidance):  # whose masks depend on the batch
        close(sample(case, pipe, [1]), both[1:])


def test_cond_guides_the_conditional_prediction_alone() -> None:
    case, make = MODULAR["Wan"], GUIDERS["SkipLayerGuidance"][1]
    pipe = case.pipe(always(make()))
    old = record(pipe.guider)
    sample(case, pipe, num_inference_steps=1)
    guider = guided(case, pipe, nft_strength=0.5, nft_guide="cond", guider=always(make()))
    new = record(guider.guider)
    sample(case, pipe, num_inference_steps=1)
    assert [name for name in new[0] if not torch.equal(new[0][name], old[0][name])] == ["pred_cond"]
    assert guider.nft_stats.passes.tolist() == [1 + guider.num_conditions]


def test_the_other_guiders_settings_are_set_here_too() -> None:
    case = MODULAR["StableDiffusion3"]
    pipe = case.pipe(guiders.AdaptiveProjectedGuidance(5.0, eta=0.2))
    expected = sample(case, pipe)
    guider = guided(case, pipe, nft_strength=0, guider=guiders.AdaptiveProjectedGuidance(2.0))
    assert not torch.equal(sample(case, pipe), expected)
    guider.guidance_scale, guider.eta = 5.0, 0.2
    assert (guider.guider.guidance_scale, guider.guider.eta) == (5.0, 0.2)
    assert torch.equal(sample(case, pipe), expected)
    other = guider.new(nft_strength=1.0)
    assert (other.eta, other.nft_strength, other.nft_config) == (0.2, 1.0, guider.nft_config)
    assert guider.new(eta=0.7).eta == 0.7 and guider.eta == 0.2
    guider.disable()
    pipe.update_components(guider=stock(1.0))
    plain = sample(case, pipe)
    pipe.update_components(guider=guider)
    assert torch.equal(sample(case, pipe), plain)


@every_guider
def test_it_is_saved_and_read_back(case: Modular, make: Callable[[], Any], tmp_path: Path) -> None:
    guider = DiffusionNFTGuidance(nft_strength=0.5, guider=make())
    guider.save_pretrained(tmp_path)
    again = DiffusionNFTGuidance.from_pretrained(tmp_path)
    assert type(again.guider) is type(guider.guider) and again.nft_strength == 0.5
    again.nft_strength = 0
    pipe = case.pipe(make())
    expected = sample(case, pipe)
    pipe.update_components(guider=again)
    assert torch.equal(sample(case, pipe), expected)


@pytest.mark.parametrize("at", [3, 5], ids=["base_pass", "lora_pass"])
def test_after_an_error_the_other_guiders_hooks_are_gone_too(at: int) -> None:
    case, make = MODULAR["Wan"], GUIDERS["AutoGuidance"][1]
    pipe = case.pipe()
    guided(case, pipe, nft_strength=0.5, guider=make())
    expected, before = sample(case, pipe), state_of(denoiser_of(pipe))
    count: list[int] = []

    def stop(*_: Any) -> None:
        count.append(1)
        if len(count) == at:
            raise RuntimeError("stop")

    hook = denoiser_of(pipe).norm_out.register_forward_hook(stop)
    with pytest.raises(RuntimeError, match="stop"):
        sample(case, pipe)
    hook.remove()
    assert_same_state(before, state_of(denoiser_of(pipe)))
    assert torch.equal(sample(case, pipe), expected)


def test_a_pipeline_with_a_guider_of_its_own_is_guided_under_it() -> None:
    """HunyuanImage is no modular pipeline and asks a guider too, by default this one."""
    case = CASES["HunyuanImagePipeline, under a guider"]

    def pipe_with_its_guider() -> Any:
        pipe = case.pipe()
        pipe.guider = pipe.ocr_guider = GUIDERS["AdaptiveProjectedMixGuidance"][1]()
        return pipe

    pipe, with_lora_on = pipe_with_its_guider(), pipe_with_its_guider()
    load_ordinarily(with_lora_on, lora_for(with_lora_on), "as_lora", ["as_lora"])
    base, expected = case.sample(pipe), case.sample(with_lora_on)
    adapted = DiffusionNFTPipeline.from_pipe(pipe, zoo_adapter_for(case, pipe, kind="policy"))
    assert torch.equal(case.sample(adapted, nft_strength=0), base)
    for strength in (1.0, 1 - 1e-6):
        close(case.sample(adapted, nft_strength=strength), expected)
    adapted = DiffusionNFTPipeline.from_pipe(pipe_with_its_guider(), zoo_adapter_for(case, pipe, tilt=4.0))
    both = case.sample(adapted, [0, 1])
    alphas = adapted.nft_stats.alpha
    close(case.sample(adapted, [1]), both[1:])
    torch.testing.assert_close(adapted.nft_stats.alpha[:, 0], alphas[:, 1], atol=1e-4, rtol=0)


class Own(guiders.ClassifierFreeGuidance):
    """A guider of the user's."""


def test_what_cannot_be_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(GuidanceError, match=r"guider is a str, expected a guider of diffusers, such as"):
        DiffusionNFTGuidance(guider="apg")
    with pytest.raises(GuidanceError, match="is a DiffusionNFTGuidance itself, and one guider has one adapter"):
        DiffusionNFTGuidance(guider=DiffusionNFTGuidance())
    with pytest.raises(GuidanceError, match=r"guidance_scale, stop and guider=AdaptiveProj\w+\(...\) were both given"):
        DiffusionNFTGuidance(guidance_scale=4.0, stop=0.5, guider=guiders.AdaptiveProjectedGuidance())
    with pytest.raises(GuidanceError, match="is a 'Nobodys', and this diffusers has AdaptiveProjectedGuidance, "):
        DiffusionNFTGuidance(guider={"_class_name": "Nobodys"})
    guider = DiffusionNFTGuidance(guider=Own(3.0))
    with pytest.raises(GuidanceError, match="is a Own, which is none of diffusers' own, so it cannot be saved"):
        guider.save_pretrained(tmp_path)


def test_masks_of_one_batch_are_refused() -> None:
    case, make = MODULAR["Wan"], GUIDERS["AutoGuidance, random"][1]
    pipe = case.pipe()
    guided(case, pipe, nft_strength=0.5, nft_mode="batched", guider=make())
    pipe.guider.nft_mode = "two_pass"
    sample(case, pipe)
    before = state_of(denoiser_of(pipe))
    pipe.guider.nft_mode = "batched"
    with pytest.raises(GuidanceError, match="drops activations at random, differently in each row"):
        sample(case, pipe)
    assert_same_state(before, state_of(denoiser_of(pipe)))


def test_a_pass_gets_the_random_state_of_the_modules_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the current device: with two GPUs these are two states."""
    asked: list[tuple[Any, ...]] = []

    class Fake:
        def get_rng_state(self, *which: Any) -> str:
            asked.append(which)
            return "state"

        def set_rng_state(self, state: str, *which: Any) -> None:
            asked.append((state, *which))

    second = torch.device("cuda", 1)
    monkeypatch.setattr(torch, "get_device_module", lambda device: Fake())
    module = torch.nn.Linear(1, 1)
    monkeypatch.setattr(module, "parameters", lambda: iter([SimpleNamespace(device=second)]))
    randomness = SameRandomness(torch.nn.Identity(), one_batch=False)
    randomness._same(module, ())
    randomness._same(module, ())
    assert asked == [(second,), ("state", second)]
