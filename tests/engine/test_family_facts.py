"""The facts of a family one by one: noise levels, rows, lists for Tensors; what is refused; denoisers without a row."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from helpers.pipelines_page import PAGE, REFUSED, page, refusal
from helpers.repository import ROOT
from helpers.zoo import CASES, GENERIC, Case, adapter_for, denoiser_of
from nft_pipeline.errors import FamilyError, GuidanceError
from nft_pipeline.families import registry as families
from nft_pipeline.families.forward_call import as_rows, as_text, as_tokens, output_tensor, replace_output, same_state
from nft_pipeline.families.registry import FAMILIES, cfg_switch, family_of, listed_family
from nft_pipeline.pipeline import DiffusionNFTPipeline


def level(denoiser: str, timestep: Any, scheduler: Any = None, *, rows: int = 1, **more: Any) -> list[float]:
    """The noise level of a call of this timestep."""
    family = FAMILIES[denoiser]
    name = {"ZImageTransformer2DModel": "t", "HiDreamImageTransformer2DModel": "timesteps"}.get(denoiser, "timestep")
    inputs = {family.state: torch.zeros(rows, 4, 8, 8), name: timestep, **more}
    return family.noise_level(inputs, scheduler).tolist()


@pytest.mark.parametrize(
    ("denoiser", "timestep"),
    [
        ("SD3Transformer2DModel", 250.0),
        ("FluxTransformer2DModel", 0.25),
        ("ZImageTransformer2DModel", 0.75),
        ("Lumina2Transformer2DModel", 0.75),
        ("MochiTransformer3DModel", 750.0),
        ("HiDreamImageTransformer2DModel", 250),
    ],
)
def test_each_pipelines_way_to_say_a_quarter(denoiser: str, timestep: float) -> None:
    assert level(denoiser, torch.tensor([timestep] * 2), rows=2) == [0.25, 0.25]
    assert level(denoiser, torch.tensor(timestep), rows=2) == [0.25, 0.25]


def test_a_video_with_a_time_for_each_token_is_as_noisy_as_its_noisiest_token() -> None:
    times = torch.tensor([[0.0, 500.0, 500.0], [0.0, 250.0, 0.0]])
    assert level("WanTransformer3DModel", times, rows=2) == [0.5, 0.25]


def test_noise_level_of_a_variance_preserving_model_is_that_of_its_scheduler() -> None:
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(7)
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        expected = (sigma / (1 + sigma)).item()
        assert level("UNet2DConditionModel", timestep, scheduler, rows=2) == pytest.approx([expected] * 2, abs=1e-3)


def test_a_schedule_that_ends_in_pure_noise_has_noise_level_1_there() -> None:
    scheduler = diffusers.DDIMScheduler(rescale_betas_zero_snr=True)
    assert level("UNet2DConditionModel", torch.tensor(999), scheduler) == [1.0]
    assert 0.9 < level("UNet2DConditionModel", 998.5, scheduler)[0] < 1


def test_a_scheduler_without_noise_levels_is_a_named_error() -> None:
    with pytest.raises(FamilyError, match="FlowMatchEulerDiscreteScheduler, expected one with alpha"):
        level("UNet2DConditionModel", 1, diffusers.FlowMatchEulerDiscreteScheduler())


def test_cogview4_gives_labels_and_shifts_only_the_sigmas() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    scheduler.set_timesteps(timesteps=[1000.0, 500.0], sigmas=[1.0, 0.5], mu=3.0)
    assert level("CogView4Transformer2DModel", torch.tensor([500.0]), scheduler) == [pytest.approx(0.75)]


@pytest.mark.parametrize(("scheduler", "timestep", "scale"), [("Flow", 250.0, 1.0), ("SCM", 0.25, 1000.0)])
def test_sana_and_sana_sprint(scheduler: str, timestep: float, scale: float) -> None:
    denoiser = SimpleNamespace(config=SimpleNamespace(timestep_scale=scale))
    made: Any = diffusers.SCMScheduler() if scheduler == "SCM" else diffusers.FlowMatchEulerDiscreteScheduler()
    assert level("SanaTransformer2DModel", timestep, made, self=denoiser) == [0.25]


def test_z_image_without_classifier_free_guidance_near_the_picture() -> None:
    """cfg_truncation: from a time on the batch is not doubled, and its rows are all conditional."""
    pipe = SimpleNamespace(do_classifier_free_guidance=True, _cfg_truncation=0.6)
    doubled = cfg_switch(FAMILIES["ZImageTransformer2DModel"], pipe, (), {})
    assert doubled({"t": torch.tensor([0.5, 0.5])}) and not doubled({"t": torch.tensor([0.7])})


def test_z_image_truncated_in_the_middle_of_a_call() -> None:
    case = CASES["ZImagePipeline"]
    pipe = case.pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(case, pipe))
    truncated = {"cfg": True, "cfg_truncation": 0.3, "num_inference_steps": 4}
    stock = case.sample(pipe, [0, 1], **truncated)
    assert torch.equal(case.sample(guided, [0, 1], nft_strength=0, **truncated), stock)
    case.sample(guided, [0, 1], **truncated)
    assert guided.nft_stats.alpha.shape == (4, 2)


def test_a_pipeline_without_the_property_says_it_by_guidance_scale() -> None:
    family = FAMILIES["AuraFlowTransformer2DModel"]

    class Pipe:
        def __call__(self, prompt: str = "", guidance_scale: float | None = 3.5) -> None: ...

    assert cfg_switch(family, Pipe(), (), {})({}), "its default"
    assert not cfg_switch(family, Pipe(), (), {"guidance_scale": 1.0})({})
    assert not cfg_switch(family, Pipe(), ("a cat", 1.0), {})({})
    assert not cfg_switch(family, Pipe(), (), {"guidance_scale": None})({})


def test_conditional_rows() -> None:
    assert FAMILIES["SD3Transformer2DModel"].conditional(6, True) == slice(3, 6)
    assert FAMILIES["ZImageTransformer2DModel"].conditional(6, True) == slice(0, 3)
    assert FAMILIES["FluxTransformer2DModel"].conditional(6, True) == slice(0, 6)
    assert FAMILIES["SD3Transformer2DModel"].conditional(6, False) == slice(0, 6)


def test_lists_of_rows_are_tensors_to_the_engine() -> None:
    listed = ([torch.ones(2), torch.zeros(2)],)
    assert output_tensor(listed).tolist() == [[1, 1], [0, 0]]
    (replaced,) = replace_output(listed, torch.full((2, 2), 5.0))
    assert isinstance(replaced, list) and [row.tolist() for row in replaced] == [[5, 5], [5, 5]]
    with pytest.raises(FamilyError, match=r"a batch of 2 rows is .*\(2,\).*\(3,\).*expected Tensors of one shape"):
        as_rows([torch.zeros(2), torch.zeros(3)])
    with pytest.raises(FamilyError, match=r"a batch of 1 rows is \['list'\]"):
        as_rows([[torch.zeros(2)]])  # type: ignore[list-item]


def test_shorter_prompts_are_padded_with_zeros() -> None:
    text = FAMILIES["ZImageTransformer2DModel"].read_text({"cap_feats": [torch.ones(3, 2), torch.ones(1, 2)]})
    assert text is not None and text.shape == (2, 3, 2) and text[1].tolist() == [[1, 1], [0, 0], [0, 0]]


def test_feature_maps_become_tokens() -> None:
    assert as_tokens(torch.zeros(2, 5, 3, 4)).shape == (2, 12, 5)
    assert as_tokens(torch.zeros(2, 1, 3, 4, 5)).shape == (2, 12, 5)
    assert as_tokens(torch.zeros(2, 12, 5)).shape == (2, 12, 5)


def test_a_state_that_is_cast_for_each_call_is_still_the_same() -> None:
    x = torch.randn(3)
    assert same_state(x, x.clone()) and not same_state(x, x + 1)
    rows = [x]
    assert same_state(rows, [x.clone()]) and not same_state(rows, [x + 1]) and not same_state(rows, [x, x])


# Denoisers without a row.


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Takes a denoiser's row away."""
    families._generic_family.cache_clear()
    yield lambda name: monkeypatch.delitem(FAMILIES, name)
    families._generic_family.cache_clear()


def without_text(case: Case, pipe: Any, **kwargs: Any) -> Any:
    """An adapter made where nobody knows where the text comes in."""
    return adapter_for(case, pipe, text=False, **kwargs)


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "SanaPipeline", "FluxPipeline", "PixArtSigmaPipeline"])
@pytest.mark.filterwarnings("ignore:.*not among the denoisers")
def test_without_its_row_a_family_gives_the_same(name: str, unlisted: Any) -> None:
    case = CASES[name]
    pipe = case.pipe()
    denoiser = type(denoiser_of(pipe)).__name__
    calls = [("positive", False), ("policy", False), ("policy", True)]
    if name == "FluxPipeline":  # whose unconditional rows are a call of their own
        calls.append(("positive", True))
    adapters = {kind: without_text(case, pipe, kind=kind) for kind in ("positive", "policy")}

    def run(kind: str, cfg: bool) -> tuple[torch.Tensor, torch.Tensor]:
        guided = DiffusionNFTPipeline.from_pipe(pipe, adapters[kind])
        # Of a denoiser without a row nobody knows that FLUX's guidance_scale is no classifier-free guidance.
        embedded = {"guidance_scale": 1.0} if name == "FluxPipeline" else {}
        made = case.sample(guided, [0, 1], cfg=cfg, nft_strength=0.7, **embedded)
        guided.unwrap()
        return made, guided.nft_stats.noise_level[:, 0]

    expected = [run(*call) for call in calls]
    unlisted(denoiser)
    for call, (made, levels) in zip(calls, expected, strict=True):
        generic, its_levels = run(*call)
        assert torch.equal(generic, made)
        torch.testing.assert_close(its_levels, levels)


@pytest.mark.filterwarnings("ignore:.*not among the denoisers")
def test_rows_nobody_has_described_are_refused(unlisted: Any) -> None:
    case = CASES["StableDiffusion3Pipeline"]
    pipe = case.pipe()
    adapter = without_text(case, pipe)
    stock = case.sample(pipe, cfg=True)
    denoiser = type(denoiser_of(pipe)).__name__
    unlisted(denoiser)
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    with pytest.raises(
        FamilyError, match=rf"guidance is on, and {denoiser} has no entry .*guidance_scale=1.*add the family"
    ):
        case.sample(guided, cfg=True)
    assert torch.equal(case.sample(guided, cfg=True, nft_strength=0), stock)


def test_the_warning_says_what_is_assumed_and_comes_once(unlisted: Any) -> None:
    unlisted("SD3Transformer2DModel")
    denoiser = denoiser_of(CASES["StableDiffusion3Pipeline"].pipe())
    with pytest.warns(UserWarning, match=r"SD3Transformer2DModel is not among .*'hidden_states'; 'timestep' is 1000 t"):
        family = family_of(denoiser)
    assert listed_family(denoiser) is None
    assert family.lora_scale == "joint_attention_kwargs" and family.component == "transformer"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert family_of(denoiser) is family


def test_what_is_no_denoiser_of_diffusers_is_refused() -> None:
    with pytest.raises(FamilyError, match=r"the denoiser is a Linear, not diffusers', .*it knows .*SD3Transformer2DM"):
        family_of(torch.nn.Linear(1, 1))
    with pytest.raises(FamilyError, match=r"is a AutoencoderKL, whose forward has no timestep: sample, .*it knows"):
        family_of(CASES["StableDiffusionPipeline"].pipe().vae)


@pytest.mark.parametrize("case", GENERIC.values(), ids=GENERIC)
@pytest.mark.filterwarnings("ignore:.*not among the denoisers")
def test_pipelines_over_denoisers_nobody_has_listed(case: Case) -> None:
    pipe = case.pipe()
    assert type(denoiser_of(pipe)).__name__ not in FAMILIES
    stock = [case.sample(pipe, cfg=cfg) for cfg in (False, True)]
    policy = DiffusionNFTPipeline.from_pipe(pipe, without_text(case, pipe, kind="policy"))
    for cfg in (False, True):
        assert torch.equal(case.sample(policy, cfg=cfg, nft_strength=0), stock[cfg])
        assert (case.sample(policy, cfg=cfg) - stock[cfg]).abs().max() > 1e-3 * stock[cfg].abs().max()
    policy.unwrap()
    positive = DiffusionNFTPipeline.from_pipe(pipe, without_text(case, pipe))
    if pipe.__class__ is diffusers.StableVideoDiffusionPipeline:
        with pytest.raises(GuidanceError, match="4 rows where the batch has 2: this model folds the batch"):
            case.sample(positive, [0, 1])
        return
    batch = case.sample(positive, [0, 1])
    stats = positive.nft_stats
    assert stats.noise_level[0].min() > 0.8 and stats.noise_level[:, 0].diff().max() < 0
    assert (stats.alpha[0, 0] - stats.alpha[0, 1]).abs() > 1e-6
    torch.testing.assert_close(case.sample(positive, [1]), batch[1:], atol=1e-4, rtol=0)


def test_a_pipeline_may_give_no_text() -> None:
    family = FAMILIES["UNet2DConditionModel"]
    assert family.read_text({"encoder_hidden_states": None}) is None
    assert family.read_text({}) is None


@pytest.mark.filterwarnings("ignore:.*not among the denoisers")
def test_places_of_tokens_belong_to_no_row_however_many_there_are() -> None:
    pipe = GENERIC["BriaPipeline"].pipe()
    inputs = {"self": pipe.transformer, "hidden_states": torch.zeros(4, 4, 16), "img_ids": torch.zeros(4, 3)}
    taken = family_of(pipe.transformer).take_rows(inputs, [0, 1])
    assert taken["hidden_states"].shape == (2, 4, 16)
    assert taken["img_ids"].shape == (4, 3)


# What is refused, and the page.


@pytest.mark.parametrize("pipeline", REFUSED, ids=lambda pipeline: pipeline.__name__)
def test_pipelines_whose_rows_cannot_be_told_apart_are_refused(pipeline: Any) -> None:
    reasons = ("adds rows of its own", "it does not say whether", "reads attention maps inside the denoiser")
    assert any(reason in refusal(pipeline) for reason in reasons)


def test_a_refused_pipeline_refuses_an_adapter() -> None:
    case = CASES["StableDiffusionPipeline"]
    adapter = adapter_for(case, case.pipe())
    parts = case.pipe().components
    perturbed = diffusers.StableDiffusionPAGPipeline(**parts, requires_safety_checker=False, pag_applied_layers="mid")
    with pytest.raises(FamilyError, match=r"StableDiffusionPAGPipeline cannot be guided.*adds rows of its own"):
        DiffusionNFTPipeline.from_pipe(perturbed, adapter)


def test_the_page_lists_what_is_tested_here() -> None:
    assert PAGE == ROOT / "docs" / "pipelines.md"
    assert PAGE.read_text(encoding="utf-8") == page(), "write it again: make pages"


def test_texts_beside_pictures_in_one_list_are_no_text_for_a_head():
    rows = [torch.ones(3, 8), torch.ones(5, 8)]
    assert as_text(rows).shape == (2, 5, 8)
    with pytest.raises(FamilyError, match=r"as 2 parts, \(2, 16, 32\), \(2, 4, 32\), expected one Tensor"):
        as_text([torch.ones(2, 16, 32), torch.ones(2, 4, 32)])
