"""What would give a wrong picture without a word: each is right, or refused in a sentence that says what to do.

That every pass gets the denoiser's inputs as they were, and that rows are counted, is in test_properties.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch

from helpers import zoo_odd
from helpers.by_hand import BY_HAND
from helpers.properties import BELOW_1
from helpers.tiny import assert_same_state, sample, state_of, tiny_adapter, tiny_pipe
from helpers.zoo import CASES, GENERIC, Case, adapter_for
from nft_pipeline.engine.lora_loading import attach_lora
from nft_pipeline.errors import FamilyError, GuidanceError
from nft_pipeline.families.batch import prompts_and_images
from nft_pipeline.families.forward_call import bind_inputs, call_arguments, output_tensors, replace_output
from nft_pipeline.pipeline import DiffusionNFTPipeline

SD1, SDXL = CASES["StableDiffusionPipeline"], CASES["StableDiffusionXLPipeline"]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not among the denoisers")
        yield


def guided(case: Case, *, kind: str = "policy", tilt: float = 2.0, text: bool = False, pipe: Any = None) -> Any:
    pipe = case.pipe() if pipe is None else pipe
    return DiffusionNFTPipeline.from_pipe(pipe, adapter_for(case, pipe, kind=kind, tilt=tilt, text=text))


def share(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours - expected).abs().max() / expected.abs().max())


# Inputs.


class _Pops(torch.nn.Module):
    def forward(self, x: torch.Tensor, residuals: list[torch.Tensor], more: dict[str, Any]) -> None:
        residuals.pop(), more.pop("inner").pop()


def test_a_forward_that_pops_from_its_inputs_leaves_them_to_the_next_one() -> None:
    x, given = torch.zeros(1), ([torch.ones(1), torch.ones(2)], {"inner": [torch.ones(3)]})
    module = _Pops()
    inputs = bind_inputs(module, (x, *given), {})
    module(x, *given)
    for _ in range(2):
        module(**call_arguments(inputs))
    assert [len(each) for each in inputs["residuals"]] == [1, 2] and len(inputs["more"]["inner"]) == 1
    assert inputs["x"] is x


def test_three_passes_on_one_t2i_adapter() -> None:
    """Two adapters at work are two further passes."""
    case = CASES["StableDiffusionAdapterPipeline"]
    pipe = case.pipe()
    adapter = adapter_for(case, pipe, kind="policy")
    both = DiffusionNFTPipeline.from_pipe(pipe, {"one": adapter, "two": adapter})
    halves = case.sample(both, nft_strength={"one": 0.3, "two": 0.4})
    assert share(halves, case.sample(both, nft_strength={"one": 0.7})) < 1e-5


# Rows.


def test_what_a_call_asks_for() -> None:
    embeds = torch.zeros(3, 2, 4)

    def of_prompts(self, prompt=None, prompt_embeds=None, image=None, num_images_per_prompt=1): ...

    def of_videos(self, prompt=None, num_videos_per_prompt=None): ...

    def of_images(self, image=None, class_labels=None): ...

    assert prompts_and_images(of_prompts, {"prompt": "a cat", "num_images_per_prompt": 2}) == (1, 2)
    assert prompts_and_images(of_videos, {"prompt": ["a", "b"], "num_videos_per_prompt": None}) == (2, 1)
    assert prompts_and_images(of_prompts, {"prompt": None, "prompt_embeds": embeds}) == (3, 1)
    assert prompts_and_images(of_prompts, {"prompt": "", "prompt_embeds": [torch.zeros(1)] * 4}) == (4, 1)
    assert prompts_and_images(of_prompts, {"image": embeds}) is None, "pictures beside a prompt may be references"
    assert prompts_and_images(of_images, {"image": embeds}) == (3, 1)
    assert prompts_and_images(of_images, {"image": object()}) == (1, 1)
    assert prompts_and_images(of_images, {"class_labels": [1, 2]}) == (2, 1)


@pytest.mark.parametrize("count", [1, 2])
def test_sana_sprint_at_its_own_guidance_scale(count: int) -> None:
    """Nothing is doubled for it: each row is a sample, and its alpha its own."""
    case = CASES["SanaSprintPipeline"]
    pipe = guided(case, kind="positive", text=True)
    case.sample(pipe, list(range(count)))
    assert pipe.nft_stats.alpha.shape == (2, count)


def test_rows_that_are_neither_one_nor_two_for_a_sample_are_refused() -> None:
    case = zoo_odd.PANORAMA
    pipe = guided(case, kind="positive", text=True)
    for call in ({"cfg": True}, {"view_batch_size": 2}):
        with pytest.raises(FamilyError, match=r"batch of 2 rows, which are neither one for each sample .*policy adapt"):
            case.sample(pipe, **call)
    policy = guided(case, pipe=case.pipe())
    for call in ({"cfg": True}, {"view_batch_size": 2}):
        assert share(case.sample(policy, nft_strength=1 - 1e-6, **call), case.sample(policy, **call)) < 1e-5


def test_pipelines_that_look_inside_the_denoiser_are_refused() -> None:
    parts = SD1.pipe().components
    blurred = diffusers.StableDiffusionSAGPipeline(**parts, requires_safety_checker=False)
    with pytest.raises(FamilyError, match=r"SAGPipeline cannot be guided .* reads attention maps inside the denoiser"):
        guided(SD1, pipe=blurred)


# The pipeline's own caches of keys and values.


@pytest.mark.parametrize("case", [zoo_odd.QWEN_IMAGE_21, zoo_odd.FLUX2_KLEIN_KV], ids=["qwen21", "flux2_klein_kv"])
def test_a_cache_of_keys_and_values_is_refused_unless_one_pass_is_enough(case: Case) -> None:
    pipe = guided(case, pipe=(stock := case.pipe()))
    assert torch.equal(case.sample(pipe, nft_strength=0), case.sample(stock))
    case.sample(pipe)
    passes = pipe.nft_stats.passes.tolist()
    assert passes == [1, 1]
    for call in ({"nft_strength": 0.5}, {"nft_interval": (0.0, 0.9)}, {"nft_strength": 0.5, "nft_mode": "single"}):
        with pytest.raises(
            GuidanceError, match=r"keys and values in a cache of its own \(kv_cache.*use_kv_cache=False"
        ):
            case.sample(pipe, **call)
        assert pipe.nft_stats.steps == 0, "before the denoiser has run"


def test_a_strength_set_in_the_middle_of_a_cached_call_is_refused() -> None:
    case = zoo_odd.QWEN_IMAGE_21
    pipe = guided(case)

    def off(pipe: Any, step: int, timestep: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        pipe.set_nft_strength(0.0)
        return inputs

    with pytest.raises(GuidanceError, match="keys and values in a cache of its own"):
        case.sample(pipe, callback_on_step_end=off)


# Several predictions.


def test_sound_is_guided_like_the_video() -> None:
    case = GENERIC["LTX2Pipeline"]
    pipe = guided(case)
    for drawn in (lambda **call: pipe(**call), lambda **call: pipe(**call)[1:]):
        one = {"num_inference_steps": 1}  # in which all that comes out is linear in the velocity
        base, half, whole = (case.sample(drawn, nft_strength=strength, **one) for strength in (0, 0.5, 1))
        assert share(whole, base) > 1e-3
        torch.testing.assert_close(half, (base + whole) / 2, atol=1e-5, rtol=0)


def test_ltx2_at_its_own_guidance() -> None:
    """Rows of three kinds in a step, in calls of their own: the record has gaps, the result is there."""
    case = GENERIC["LTX2Pipeline"]
    pipe = guided(case)
    own = {"guidance_scale": 3.0, "stg_scale": 1.0, "modality_scale": 3.0}
    own |= {f"audio_{name}": value for name, value in own.items()}
    guidance_free = case.sample(pipe, cfg=True, nft_strength=1 - 1e-6, **own)
    assert share(guidance_free, case.sample(pipe, cfg=True, **own)) < 1e-5
    stats = pipe.nft_stats
    assert stats.noise_level.shape[1] == 2 and stats.noise_level.isnan().any()
    assert "nan" not in str(stats)


def test_a_further_output_of_other_rows_is_refused() -> None:
    two, three = torch.ones(2, 3), torch.ones(3)
    assert replace_output((two, None, two), 2 * two, 3 * two)[1] is None
    with pytest.raises(FamilyError, match=r"Tensor of shape \(3,\) beside its prediction of shape \(2, 3\)"):
        output_tensors((two, three))


# Layers that another part of the pipeline runs.


@pytest.mark.parametrize("name", ["ZImageControlNetPipeline", "ZImageControlNetInpaintPipeline"])
def test_a_lora_on_layers_that_the_control_net_runs_too_is_refused(name: str) -> None:
    """The ControlNet ran them with the LoRA off in every pass: a fifth of the picture was wrong."""
    case = BY_HAND[name]
    pipe = case.pipe()
    adapter = adapter_for(case, pipe, kind="policy", text=False)
    before = state_of(pipe.transformer)
    with pytest.raises(FamilyError, match=r"its controlnet runs \d+ of the layers that the LoRA changes, such as tr"):
        DiffusionNFTPipeline.from_pipe(pipe, adapter)
    assert_same_state(before, state_of(pipe.transformer))
    own = {key: tensor for key, tensor in adapter.lora.items() if ".layers." in key}
    assert own and len(own) < len(adapter.lora)
    guided_pipe = DiffusionNFTPipeline.from_pipe(pipe, replace(adapter, lora=own))
    at_1, below = case.sample(guided_pipe, [1]), case.sample(guided_pipe, [1], nft_strength=BELOW_1)
    guided_pipe.unload_nft_adapter()
    attach_lora(pipe.transformer, own, "transformer", "on")
    assert max(share(below, at_1), share(at_1, case.sample(pipe, [1]))) < 2e-5


# Noise levels.


@pytest.mark.parametrize("steps", [3, 6])
def test_noise_levels_of_continuous_timesteps_and_flow_sigmas(steps: int) -> None:
    continuous = diffusers.EulerDiscreteScheduler(
        timestep_type="continuous", prediction_type="v_prediction", use_karras_sigmas=True
    )
    flow = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    of_sigma = {continuous: lambda sigma: sigma / (1 + sigma), flow: lambda sigma: sigma}
    for scheduler, level in of_sigma.items():
        pipe = SDXL.pipe()
        pipe.scheduler = scheduler
        guided_pipe = guided(SDXL, pipe=pipe, text=True)
        SDXL.sample(guided_pipe, num_inference_steps=steps)
        levels = level(scheduler.sigmas[:steps])
        torch.testing.assert_close(guided_pipe.nft_stats.noise_level[:, 0], levels, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["StableVideoDiffusionPipeline", "BriaPipeline", "LTX2Pipeline"])
def test_noise_levels_of_denoisers_nobody_has_listed(name: str) -> None:
    case = GENERIC[name]
    pipe = guided(case)
    case.sample(pipe, num_inference_steps=6)
    levels = pipe.nft_stats.noise_level[:, 0]
    assert levels[0] > 0.9 and levels.diff().max() < 0 and levels[-1] < 0.6


@pytest.mark.parametrize("name", ["ConsistencyModelPipeline", "ScoreSdeVePipeline"])
def test_noise_levels_under_sigmas_that_are_no_flow(name: str) -> None:
    """They were taken for a flow's: 27 and 5 for the first pipeline, .67 twice for the second."""
    case = BY_HAND[name]
    pipe = guided(case, kind="positive")
    case.sample(pipe)
    sigmas = pipe.scheduler.sigmas[:2]
    each_step = pipe.nft_stats.noise_level[:, 0].reshape(2, -1)  # the second one corrects before it predicts
    torch.testing.assert_close(each_step, (sigmas / (1 + sigmas))[:, None].expand_as(each_step).float())


def test_a_timestep_that_is_nothing_of_the_schedulers_is_refused() -> None:
    case = BY_HAND["ConsistencyModelPipeline"]
    pipe = guided(case)
    pipe.unet.register_forward_pre_hook(lambda unet, args: (args[0], args[1] + 7.0))
    with pytest.raises(FamilyError, match="it is neither a timestep nor a sigma of the CMStochasticIterativeScheduler"):
        case.sample(pipe)


def test_a_last_timestep_of_1_is_little_noise() -> None:
    """1 of 1000, where the pipeline hands on the scheduler's labels; it was taken for pure noise."""
    case = GENERIC["BriaPipeline"]
    pipe = guided(case)
    case.sample(pipe)
    assert pipe.nft_stats.noise_level[-1].item() == pytest.approx(0.001, abs=1e-3)


# The record.


def test_a_record_that_cannot_be_made_costs_nothing_but_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipe()
    with_adapter = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))
    expected = sample(with_adapter)
    monkeypatch.setattr("nft_pipeline.engine.stats._stacked", lambda values: 1 / 0)
    with pytest.warns(UserWarning, match="the record of this call could not be made, so nft_stats is None: division"):
        assert torch.equal(sample(with_adapter), expected)
    assert with_adapter.nft_stats is None
