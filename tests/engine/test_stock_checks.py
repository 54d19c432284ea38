"""What diffusers asks of every pipeline of its own (its PipelineTesterMixin), asked of the guided ones.

Guidance is on in every test. To have a family checked, add the name of its case in tests/helpers/zoo.py to `CHECKED`.
"""

from __future__ import annotations

import contextlib
import inspect
import io
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import Tensor

from helpers.zoo import CASES, Case, adapter_for, denoiser_of
from helpers.zoo_case import rows
from helpers.zoo_videos import wan_vae
from nft_pipeline import DiffusionNFTPipeline

CHECKED = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "WanPipeline",
)
OPTIONAL = {"num_inference_steps", "generator", "latents", "output_type", "return_dict", "callback_on_step_end"}
STEPS = 3

every_pipeline = pytest.mark.parametrize("name", CHECKED)
with_and_without_cfg = pytest.mark.parametrize("cfg", [False, True], ids=["cfg_free", "cfg"])


def guided_pipe(name: str) -> tuple[Case, Any]:
    case = CASES[name]
    pipe = case.pipe()
    if pipe.vae is None:
        pipe.register_modules(vae=wan_vae())
    return case, DiffusionNFTPipeline.from_pipe(pipe, adapter_for(case, pipe))


def arguments(
    case: Case, indices: list[int], *, cfg: bool = False, dtype: torch.dtype = torch.float32, **more: Any
) -> dict[str, Any]:
    """A call's arguments for samples of these indices, Tensors in `dtype`."""
    call = {"num_inference_steps": STEPS, "output_type": "latent", **case.conditions(indices)}
    call |= case.cfg(indices) if cfg else {}
    call["generator"] = [torch.Generator().manual_seed(500 + i) for i in indices]
    if case.start is not None:
        call["latents"] = rows(indices, *case.start, seed=1)
    call |= more
    floats = {key for key, value in call.items() if isinstance(value, Tensor) and value.is_floating_point()}
    return {key: value.to(dtype) if key in floats else value for key, value in call.items()}


def latents(pipe: Any, case: Case, indices: list[int] | None = None, **more: Any) -> Tensor:
    """The result of a call, which has been guided at every step."""
    result = pipe(**arguments(case, indices or [0], return_dict=False, **more))[0]
    assert pipe.nft_stats.scales.min() > 0 and pipe.nft_stats.push.min() > 0
    return result


def close(ours: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    atol = tolerance * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(ours.float(), expected.float(), atol=atol, rtol=0)


def per_prompt(pipe: Any) -> str:
    known = inspect.signature(type(pipe).__call__).parameters
    return next(name for name in ("num_images_per_prompt", "num_videos_per_prompt") if name in known)


# --- saving and loading ---


@every_pipeline
@pytest.mark.parametrize(("dtype", "variant"), [(torch.float32, None), (torch.bfloat16, "other")])
def test_save_and_load(tmp_path: Path, name: str, dtype: torch.dtype, variant: str | None) -> None:
    case, guided = guided_pipe(name)
    guided.to(dtype)
    expected = latents(guided, case, cfg=True, dtype=dtype)
    guided.save_pretrained(tmp_path, variant=variant)
    weights = [path.name for path in tmp_path.glob("[tu]*/diffusion_pytorch_model*")]
    assert weights == [f"diffusion_pytorch_model{'.other' if variant else ''}.safetensors"]
    loaded = DiffusionNFTPipeline.from_pretrained(tmp_path, tmp_path / "nft_adapter", dtype=dtype, variant=variant)
    loaded.set_progress_bar_config(disable=True)
    assert {part.dtype for part in loaded.components.values() if isinstance(part, torch.nn.Module)} == {dtype}
    close(latents(loaded, case, cfg=True, dtype=dtype), expected, 1e-5 if dtype == torch.float32 else 0.02)


# --- batches ---


@every_pipeline
@with_and_without_cfg
def test_a_batch_is_its_single_runs(name: str, cfg: bool) -> None:
    case, guided = guided_pipe(name)
    for indices in ([0, 1], [2, 0, 1]):
        batch = latents(guided, case, indices, cfg=cfg)
        assert len(batch) == len(indices)
        for i, single in zip(indices, batch, strict=True):
            close(latents(guided, case, [i], cfg=cfg)[0], single)


def repeat_given_embeddings(pipe: Any, prompts: int, each: int, patch: pytest.MonkeyPatch) -> None:
    """SD3 and FLUX.1 repeat the prompts they encode, but not embeddings they are given, as they are here."""
    encode = pipe.encode_prompt

    def repeated(part: Any) -> Any:
        return part.repeat_interleave(each, 0) if isinstance(part, Tensor) and len(part) == prompts else part

    patch.setattr(
        pipe, "encode_prompt", lambda *args, **kwargs: tuple(map(repeated, encode(*args, **kwargs))), raising=False
    )


@every_pipeline
@with_and_without_cfg
@pytest.mark.parametrize(("prompts", "each"), [(1, 2), (2, 1), (2, 2)])
def test_several_results_a_prompt(
    name: str, cfg: bool, prompts: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, guided = guided_pipe(name)
    assert case.start is not None
    noise = rows(list(range(prompts * each)), *case.start, seed=1)
    with monkeypatch.context() as patch:
        repeat_given_embeddings(guided, prompts, each, patch)
        call = {"latents": noise, "generator": None, per_prompt(guided): each}
        batch = latents(guided, case, list(range(prompts)), cfg=cfg, **call)
    assert len(batch) == prompts * each and guided.nft_stats.alpha.shape == (STEPS, prompts * each)
    for i, result in enumerate(batch):
        single = latents(guided, case, [i // each], cfg=cfg, latents=noise[i : i + 1])
        close(single[0], result)


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "FluxPipeline"])
def test_one_row_of_embeddings_for_several_results(name: str) -> None:
    """The denoiser broadcasts it over the batch, so the alpha head must."""
    case, guided = guided_pipe(name)
    assert case.start is not None
    noise = rows([0, 1], *case.start, seed=1)
    for mode in ("two_pass", "batched"):
        pair = latents(guided, case, latents=noise, generator=None, num_images_per_prompt=2, nft_mode=mode)
        for i in range(2):
            close(latents(guided, case, latents=noise[i : i + 1])[0], pair[i])


# --- the call's arguments and results ---


@every_pipeline
def test_signature(name: str) -> None:
    _, guided = guided_pipe(name)
    known = inspect.signature(type(guided).__call__).parameters
    optional = {key for key, value in known.items() if value.default is not inspect.Parameter.empty}
    assert optional >= {*OPTIONAL, per_prompt(guided)}
    stock = inspect.signature(type(guided.unwrap()).__call__).parameters
    assert {key: known[key] for key in stock} == dict(stock)


@every_pipeline
def test_dict_and_tuple(name: str) -> None:
    case, guided = guided_pipe(name)
    output = guided(**arguments(case, [0], cfg=True))
    assert torch.equal(output[0], latents(guided, case, cfg=True))
    assert type(output) is type(guided.unwrap()(**arguments(case, [0])))


@every_pipeline
def test_output_types(name: str) -> None:
    case, guided = guided_pipe(name)
    found = {kind: guided(**arguments(case, [0, 1], output_type=kind))[0] for kind in ("pt", "np", "pil")}
    assert guided.nft_stats.scales.min() > 0
    assert len(found["pt"]) == 2 and found["pt"].shape[-3] == 3  # of a video the frames come before the colours
    np.testing.assert_allclose(found["pt"].movedim(-3, -1).numpy(), found["np"], atol=1e-5)
    drawn = np.stack([np.stack(picture) if isinstance(picture, list) else picture for picture in found["pil"]])
    assert np.abs(drawn - found["np"] * 255).max() <= 1.0
    base = guided(**arguments(case, [0, 1], output_type="np"), nft_strength=0)[0]
    assert np.abs(base - found["np"]).max() > 1e-3


@every_pipeline
def test_generators(name: str) -> None:
    case, guided = guided_pipe(name)

    def from_seeds(*seeds: int) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return latents(guided, case, [0] * len(seeds), latents=None, generator=generators)

    pair = from_seeds(1, 2)
    close(from_seeds(1)[0], pair[0])
    close(from_seeds(2)[0], pair[1])
    assert (pair[0] - pair[1]).abs().max() > 1e-2
    single = torch.Generator().manual_seed(1)
    close(latents(guided, case, latents=None, generator=single), from_seeds(1))
    with pytest.raises(ValueError, match="list of generators of length 1"):
        latents(guided, case, [0, 1], latents=None, generator=[single])


@every_pipeline
def test_the_rest_may_be_left_out(name: str) -> None:
    case, guided = guided_pipe(name)
    call = case.conditions([0])
    results = guided(**call, num_inference_steps=2)[0]
    assert len(results) == 1 and np.asarray(results[0]).shape[-3:] == (call["height"], call["width"], 3)
    assert guided.nft_stats.steps == 2 and guided.nft_stats.scales.min() > 0


@every_pipeline
def test_classifier_free_guidance_acts(name: str) -> None:
    case, guided = guided_pipe(name)
    assert (latents(guided, case, cfg=True) - latents(guided, case)).abs().max() > 1e-2


# --- the callback ---


@every_pipeline
@with_and_without_cfg
def test_callback_inputs(name: str, cfg: bool) -> None:
    case, guided = guided_pipe(name)
    for asked in (["latents"], list(guided._callback_tensor_inputs)):
        seen: list[set[str]] = []

        def callback(pipe: Any, step: int, timestep: Any, inputs: dict, seen: list = seen) -> dict:
            assert pipe is guided
            seen.append(set(inputs))
            return inputs

        call = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": asked}
        close(latents(guided, case, cfg=cfg, **call), latents(guided, case, cfg=cfg))
        assert seen == [set(asked)] * STEPS
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs"):
        latents(guided, case, callback_on_step_end_tensor_inputs=["nothing"])


@every_pipeline
@with_and_without_cfg
def test_callback_changes_latents(name: str, cfg: bool) -> None:
    case, guided = guided_pipe(name)
    assert case.start is not None
    other = rows([9], *case.start, seed=1)

    def put(step_to_change: int, value: Tensor) -> Any:
        return lambda pipe, step, t, inputs: {"latents": value} if step == step_to_change else inputs

    zeros = torch.zeros_like(other)
    assert torch.equal(latents(guided, case, cfg=cfg, callback_on_step_end=put(STEPS - 1, zeros)), zeros)
    ends = []
    for i in (3, 4):  # where it began makes no difference, to guidance's alpha neither
        noise = rows([i], *case.start, seed=1)
        ends.append(latents(guided, case, cfg=cfg, latents=noise, callback_on_step_end=put(0, other)))
        ends.append(guided.nft_stats.alpha[1:])
    if not hasattr(guided.scheduler, "model_outputs"):  # Wan's scheduler remembers the first step's
        assert torch.equal(ends[0], ends[2]) and torch.equal(ends[1], ends[3])
    assert (ends[0] - latents(guided, case, cfg=cfg)).abs().max() > 1e-2


CUTOFFS = {
    "StableDiffusionPipeline": "SDCFGCutoffCallback",
    "StableDiffusionXLPipeline": "SDXLCFGCutoffCallback",
    "StableDiffusion3Pipeline": "SD3CFGCutoffCallback",
}


@pytest.mark.parametrize("name", CUTOFFS)
def test_diffusers_own_callback_that_ends_classifier_free_guidance(name: str) -> None:
    """From one step to the next the batch has half its rows; alpha stays one per sample."""
    case, guided = guided_pipe(name)
    cutoff = getattr(diffusers.callbacks, CUTOFFS[name])(cutoff_step_ratio=0.0)
    inputs = {"callback_on_step_end": cutoff, "callback_on_step_end_tensor_inputs": cutoff.tensor_inputs}
    row_counts = []
    hook = denoiser_of(guided).register_forward_pre_hook(
        lambda module, args, kwargs: row_counts.append(len(args[0] if args else kwargs["hidden_states"])),
        with_kwargs=True,
    )
    ended = latents(guided, case, cfg=True, **inputs)
    hook.remove()
    assert row_counts == [2, 1, 1] and guided.nft_stats.alpha.shape == (STEPS, 1)
    assert guided.nft_stats.passes.tolist() == [2] * STEPS
    assert (ended - latents(guided, case, cfg=True)).abs().max() > 1e-2


@every_pipeline
def test_interrupt(name: str) -> None:
    case, guided = guided_pipe(name)
    kept: list[Tensor] = []

    def stop(pipe: Any, step: int, timestep: Any, inputs: dict) -> dict:
        kept.append(inputs["latents"].clone())
        pipe._interrupt = True
        return inputs

    result = latents(guided, case, cfg=True, callback_on_step_end=stop)
    assert len(kept) == 1 and torch.equal(result, kept[0]) and guided.nft_stats.steps == 1
    latents(guided, case, cfg=True)
    assert guided.nft_stats.steps == STEPS


# --- devices, dtypes, components ---


@every_pipeline
@with_and_without_cfg
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name: str, dtype: torch.dtype, cfg: bool) -> None:
    case, guided = guided_pipe(name)
    precise, alpha = latents(guided, case, cfg=cfg), guided.nft_stats.alpha
    guided.to(dtype)
    assert denoiser_of(guided).dtype == dtype
    result, half_alpha = latents(guided, case, cfg=cfg, dtype=dtype), guided.nft_stats.alpha
    base = guided(**arguments(case, [0], cfg=cfg, dtype=dtype), nft_strength=0)[0]
    assert base.dtype == (torch.float32 if name == "WanPipeline" else dtype), "Wan's pipeline keeps latents in fp32"
    assert result.dtype == base.dtype and bool(result.isfinite().all()) and denoiser_of(guided).dtype == dtype
    close(result, precise, 0.1 if dtype == torch.bfloat16 else 0.02)
    torch.testing.assert_close(half_alpha, alpha, atol=0.1, rtol=0)
    assert {p.dtype for p in denoiser_of(guided).parameters()} == {dtype}, "the LoRA too"


@every_pipeline
def test_to_a_device(name: str) -> None:
    case, guided = guided_pipe(name)
    expected = latents(guided, case)
    assert guided.to("cpu") is guided and guided.device == torch.device("cpu")
    assert torch.equal(latents(guided, case), expected)


@every_pipeline
def test_components(name: str) -> None:
    case, guided = guided_pipe(name)
    expected = latents(guided, case)
    parts = guided.components
    again = type(guided)(**parts)
    again.set_progress_bar_config(disable=True)
    stock = guided._nft_stock_class(**parts)
    assert parts.keys() == again.components.keys() == stock.components.keys()
    assert all(again.components[key] is part for key, part in parts.items())
    adapter = guided.nft_adapters["default"]
    again.load_nft_adapter(adapter)
    assert torch.equal(latents(again, case), expected)
    with pytest.raises(TypeError):
        type(guided)()


@every_pipeline
def test_repr(name: str) -> None:
    _, guided = guided_pipe(name)
    shown = repr(guided)
    assert shown.startswith(f"DiffusionNFT{name} {{") and f'"_class_name": "{name}"' in shown
    assert all(f'"{part}"' in shown for part in guided.components)


@every_pipeline
def test_progress_bar(name: str) -> None:
    case, guided = guided_pipe(name)
    for disable, expected in ((False, f"{STEPS}/{STEPS}"), (True, "")):
        guided.set_progress_bar_config(disable=disable)
        with contextlib.redirect_stderr(io.StringIO()) as shown:
            latents(guided, case)
        assert expected in shown.getvalue() and bool(shown.getvalue()) != disable


@every_pipeline
def test_attention_slicing(name: str) -> None:
    case, guided = guided_pipe(name)
    expected = latents(guided, case, cfg=True)
    guided.enable_attention_slicing(slice_size=1)
    close(latents(guided, case, cfg=True), expected, 1e-4)


# --- schedulers ---


# Left out: EDMEulerScheduler, which has no alphas_cumprod (such are refused by name, test_family_facts.py), and
# DPMSolverSDEScheduler, which needs another package.
SCHEDULERS = {kind.name for kind in KarrasDiffusionSchedulers} - {"EDMEulerScheduler", "DPMSolverSDEScheduler"}


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS))
def test_schedulers_of_variance_preserving_models(scheduler: str) -> None:
    case, guided = guided_pipe("StableDiffusionPipeline")
    guided.scheduler = getattr(diffusers, scheduler).from_config(guided.scheduler.config)
    result = latents(guided, case, cfg=True, num_inference_steps=5)
    base = guided(**arguments(case, [0], cfg=True, num_inference_steps=5), nft_strength=0)[0]
    assert bool(result.isfinite().all()) and (result - base).abs().max() > 1e-4 * base.abs().max()
    levels = guided.nft_stats.noise_level[:, 0]
    assert 0.8 < levels[0] <= 1 and levels[-1] < 0.5 and len(levels) >= 5
