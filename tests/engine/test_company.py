"""Guidance together with what people do to a denoiser: offload, compile, cast, quantise it, change scheduler or dtype.

The promise is always one of two: the result is that of the same guided call without it, or an error names it.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import accelerate
import diffusers
import pytest
import torch
from diffusers.pipelines import pipeline_utils
from torch import Tensor, nn

from helpers.tiny import random_lora, sample, tiny_adapter, tiny_pipe
from helpers.zoo import CASES, Case, adapter_for, denoiser_of, load_ordinarily, lora_for
from helpers.zoo_case import rows
from nft_pipeline.adapter import AdapterError, fingerprint
from nft_pipeline.errors import GuidanceError
from nft_pipeline.pipeline import DiffusionNFTPipeline

SD3, SD1, FLUX = (CASES[name] for name in ("StableDiffusion3Pipeline", "StableDiffusionPipeline", "FluxPipeline"))
a_transformer_and_a_unet = pytest.mark.parametrize("case", [SD3, SD1], ids=["sd3", "sd1"])


def close(ours: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, expected, atol=tolerance * max(1.0, expected.abs().max().item()), rtol=0)


def lora_on(case: Case, pipe: Any) -> Any:
    load_ordinarily(pipe, lora_for(pipe), "nft_as_lora", ["nft_as_lora"])
    return pipe


# Offloading. On a machine without an accelerator the device to compute on is the CPU as well: the hooks are the same.


def _model_offload(pipe: Any) -> None:
    pipe.enable_model_cpu_offload()


def _sequential_offload(pipe: Any) -> None:
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            accelerate.cpu_offload(module, torch.device("cpu"))


def _group_offload(kind: str) -> Callable[[Any], None]:
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}

    def offload(pipe: Any) -> None:
        denoiser_of(pipe).enable_group_offload(onload_device=torch.device("cpu"), offload_type=kind, **blocks)

    return offload


OFFLOADS = {
    "model": _model_offload,
    "sequential": _sequential_offload,
    "blocks": _group_offload("block_level"),
    "leaves": _group_offload("leaf_level"),
}


@pytest.mark.parametrize("offload", OFFLOADS.values(), ids=OFFLOADS)
@pytest.mark.parametrize("when", ["before_the_adapter", "after_the_adapter", "on_the_guided_pipeline"])
def test_offloading(offload: Callable[[Any], None], when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = SD1 if when == "before_the_adapter" else SD3
    monkeypatch.setattr(pipeline_utils, "get_device", lambda: "cpu:0")
    plain = case.pipe()
    adapter, base = adapter_for(case, plain), case.sample(plain, cfg=True)
    expected = case.sample(DiffusionNFTPipeline.from_pipe(plain, adapter), cfg=True)
    pipe = case.pipe()
    # diffusers takes sequential offloading off and on again around a LoRA's loading, by the pipeline's method.
    pipe.enable_sequential_cpu_offload = types.MethodType(_sequential_offload, pipe)
    if when == "before_the_adapter":
        offload(pipe)
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    if when != "before_the_adapter":
        offload(guided if when == "on_the_guided_pipeline" else pipe)
    for _ in range(2):  # model offloading takes its hooks off and on again at the end of each call
        assert torch.equal(case.sample(guided, cfg=True), expected)
    assert torch.equal(case.sample(guided, cfg=True, nft_strength=0), base)
    close(case.sample(guided, cfg=True, nft_mode="batched"), expected)
    weights = {weight.device.type for weight in denoiser_of(pipe).parameters()}
    assert weights == ({"meta"} if offload is _sequential_offload else {"cpu"}), "offloading is still on"
    assert guided.unwrap() is pipe
    assert torch.equal(case.sample(pipe, cfg=True), base)
    assert torch.equal(case.sample(DiffusionNFTPipeline.from_pipe(pipe, adapter), cfg=True), expected)


def test_offload_hooks_that_come_and_go_in_the_middle_of_a_call() -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))
    expected = sample(guided)

    def swap(pipe: Any, step: int, timestep: Any, inputs: dict) -> dict:
        if step == 0:
            accelerate.cpu_offload_with_hook(pipe.transformer, "cpu")
        else:
            accelerate.hooks.remove_hook_from_module(pipe.transformer)
        return inputs

    for _ in range(2):
        assert torch.equal(sample(guided, callback_on_step_end=swap), expected)
    assert guided.nft_stats.passes.tolist() == [2, 2, 2]


# torch.compile.


class Counted:
    """A backend that runs graphs as they are, and counts them and their runs."""

    def __init__(self) -> None:
        torch._dynamo.reset()
        self.graphs = self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, example_inputs: Any) -> Callable:
        self.graphs += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run


def _wrapped(pipe: Any, **how: Any) -> None:
    pipe.transformer = torch.compile(pipe.transformer, **how)


def _in_place(pipe: Any, **how: Any) -> None:
    pipe.transformer.compile(**how)


@pytest.mark.parametrize("compile_denoiser", [_wrapped, _in_place], ids=["torch_compile", "compile_method"])
def test_a_compiled_denoiser(compile_denoiser: Callable) -> None:
    """Both passes run compiled, as one graph each (fullgraph), and no strength, call or step needs another one."""
    pipe = tiny_pipe(layers=1)
    adapter = tiny_adapter(pipe.transformer)
    adapter = replace(adapter, config=replace(adapter.config, base_rate=0.3))
    calls: list[dict[str, Any]] = [{"nft_strength": strength} for strength in (1.0, 0.5, -2.0, 0)]
    calls += [{"nft_strength": s, "nft_mode": "single"} for s in (1.0, 0.5)]
    calls += [{"nft_strength": s, "nft_mode": "batched"} for s in (1.0, 0.5)]
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    expected = [sample(guided, **call) for call in calls]
    guided.unwrap()
    backend = Counted()
    compile_denoiser(pipe, backend=backend, fullgraph=True)
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    graphs = []
    for call, result in zip(calls, expected, strict=True):
        backend.runs = 0
        torch.testing.assert_close(sample(guided, **call), result, atol=1e-6, rtol=0)
        assert backend.runs == guided.nft_stats.forwards, "every forward was a compiled one"
        graphs.append(backend.graphs)
    assert graphs == [2, 2, 2, 2, 3, 3, 4, 4]  # LoRA off and on; rows scaled; a larger batch
    assert torch.equal(sample(guided), expected[0])
    guided.unwrap()
    torch._dynamo.reset()


def test_compiled_blocks() -> None:
    pipe = FLUX.pipe()
    adapter = adapter_for(FLUX, pipe)
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    strengths = (1.0, 0.5, 0.0, 2.0)
    expected = [FLUX.sample(guided, nft_strength=strength) for strength in strengths]
    backend = Counted()
    pipe.transformer.compile_repeated_blocks(backend=backend, fullgraph=True)
    graphs = []
    for strength, result in zip(strengths, expected, strict=True):
        backend.runs = 0
        close(FLUX.sample(guided, nft_strength=strength), result)
        graphs.append(backend.graphs)
        assert backend.runs == 2 * guided.nft_stats.forwards  # two blocks
    assert graphs == [4, 4, 4, 4]  # two kinds of block, LoRA off and on
    torch._dynamo.reset()


# Number formats.


def inputs_in(case: Case, dtype: torch.dtype) -> dict[str, Any]:
    """The case's own arguments, in a dtype, as the pipeline would have made them from a prompt."""
    assert case.start is not None
    given = {**case.conditions([0]), "latents": rows([0], *case.start, seed=1)}
    return {name: value.to(dtype) if torch.is_tensor(value) else value for name, value in given.items()}


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("cast_first", [False, True], ids=["cast_after", "cast_first"])
@a_transformer_and_a_unet
def test_fp8_layerwise_casting(case: Case, cast_first: bool, compute: torch.dtype) -> None:
    def cast(pipe: Any) -> Any:
        denoiser_of(pipe).enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute)
        return pipe

    call = inputs_in(case, compute)
    adapter = adapter_for(case, case.pipe(), kind="policy")
    pipe = case.pipe().to(compute)
    if cast_first:
        cast(pipe)
        guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    else:
        guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
        cast(pipe)
    lora = [weight for name, weight in denoiser_of(pipe).named_parameters() if "lora_" in name]
    assert {weight.dtype for weight in lora} == {compute}, "the LoRA stays out of fp8"
    stock = case.sample(pipe, **call)
    assert torch.equal(case.sample(guided, nft_strength=0, **call), stock)
    expected = case.sample(cast(lora_on(case, case.pipe().to(compute))), **call)
    close(case.sample(guided, **call), expected)
    assert (expected - stock).abs().max() > 1e-2 * stock.abs().max()


@a_transformer_and_a_unet
def test_casting_a_guided_pipeline_is_as_loading_into_a_cast_one(case: Case) -> None:
    adapter = adapter_for(case, case.pipe())
    first = DiffusionNFTPipeline.from_pipe(case.pipe().to(torch.bfloat16), adapter)
    later = DiffusionNFTPipeline.from_pipe(case.pipe(), adapter)
    in_fp32 = case.sample(later)
    later.to(torch.bfloat16)
    weights = dict(denoiser_of(later).named_parameters())
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}, "the LoRA goes along"
    result = case.sample(later, **inputs_in(case, torch.bfloat16))
    assert torch.equal(result, case.sample(first, **inputs_in(case, torch.bfloat16)))
    stock = case.sample(later, nft_strength=0, **inputs_in(case, torch.bfloat16))
    in_fp32_stock = case.sample(DiffusionNFTPipeline.from_pipe(case.pipe(), adapter), nft_strength=0)
    error, of_stock = (result.float() - in_fp32).norm(), (stock.float() - in_fp32_stock).norm()
    assert error < 3 * of_stock, "guidance adds no rounding to speak of to what bf16 does to the model itself"


class PackedLinear(nn.Linear):
    """A linear layer as quantisers make them: bytes in a shape of their own, and scales."""

    def __init__(self, plain: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        steps = plain.weight.detach().abs().amax(1, keepdim=True) / 127
        levels = (plain.weight.detach() / steps).round() + 128
        self.weight = nn.Parameter(levels.to(torch.uint8).reshape(-1, 1), requires_grad=False)
        self.steps = nn.Parameter(steps, requires_grad=False)
        self.register_buffer("zero_point", torch.tensor(128.0))
        self.bias = plain.bias
        self.meter = nn.BatchNorm1d(1)  # some keep modules inside

    def forward(self, input: Tensor) -> Tensor:
        levels = self.weight.reshape(self.out_features, self.in_features).to(input.dtype)
        return nn.functional.linear(input, (levels - self.zero_point) * self.steps, self.bias)


def quantise(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, PackedLinear(child))
        else:
            quantise(child)


@a_transformer_and_a_unet
def test_a_quantised_base_takes_the_adapter_of_the_plain_one(case: Case) -> None:
    plain, pipe = case.pipe(), case.pipe()
    adapter = adapter_for(case, plain, kind="policy")
    quantise(denoiser_of(pipe))
    packed = next(module for module in denoiser_of(pipe).modules() if isinstance(module, PackedLinear))
    before = packed.weight.clone()
    assert fingerprint(denoiser_of(pipe)) == fingerprint(denoiser_of(plain))
    stock = case.sample(pipe)
    assert not torch.equal(stock, case.sample(plain))
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    assert fingerprint(denoiser_of(pipe)) == fingerprint(denoiser_of(plain)), "with the LoRA on it too"
    assert torch.equal(case.sample(guided, nft_strength=0), stock)
    assert torch.equal(packed.weight, before)
    on = case.pipe()
    quantise(denoiser_of(on))
    close(case.sample(guided), case.sample(lora_on(case, on)))


def test_a_quantised_base_of_another_size_is_another_base() -> None:
    adapter = tiny_adapter(tiny_pipe().transformer)
    other = tiny_pipe(heads=4, head_dim=8)
    quantise(other.transformer)
    with pytest.raises(AdapterError, match="made for another base model"):
        DiffusionNFTPipeline.from_pipe(other, adapter)


# Schedulers, pictures to start from, interrupts.


@pytest.mark.parametrize(
    ("case", "scheduler"),
    [
        (SD3, diffusers.FlowMatchHeunDiscreteScheduler()),
        (SD1, diffusers.HeunDiscreteScheduler(steps_offset=1)),
    ],
    ids=["sd3", "sd1"],
)
def test_second_order_schedulers(case: Case, scheduler: Any) -> None:
    """A step of Heun's is two calls of the denoiser, each guided, the last step one."""
    pipe = case.pipe()
    pipe.scheduler = scheduler
    stock = case.sample(pipe, cfg=True)
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(case, pipe, kind="policy", tilt=1.0))
    assert torch.equal(case.sample(guided, nft_strength=0, cfg=True), stock)
    calls = 2 * case.steps - 1
    assert guided.nft_stats.steps == calls
    on = case.pipe()
    on.scheduler = scheduler
    expected = case.sample(lora_on(case, on), cfg=True)  # Heun's divides by small steps, which enlarges rounding
    torch.testing.assert_close(case.sample(guided, cfg=True), expected, atol=5e-5 * expected.abs().max().item(), rtol=0)
    case.sample(guided, nft_strength=0.5, cfg=True)
    assert guided.nft_stats.passes.tolist() == [2] * calls
    assert (guided.nft_stats.scale == 0.5).all()


@pytest.mark.parametrize("name", ["StableDiffusion3Img2ImgPipeline", "StableDiffusionImg2ImgPipeline"])
def test_a_picture_to_start_from(name: str) -> None:
    case, call = CASES[name], {"strength": 0.5, "num_inference_steps": 4, "cfg": True}
    pipe = case.pipe()
    stock = case.sample(pipe, **call)
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(case, pipe, kind="policy"))
    assert torch.equal(case.sample(guided, nft_strength=0, **call), stock)
    close(case.sample(guided, **call), case.sample(lora_on(case, case.pipe()), **call))
    case.sample(guided, nft_strength=0.5, **call)
    assert guided.nft_stats.steps == 2 and guided.nft_stats.noise_level.max() < 0.9


@a_transformer_and_a_unet
def test_an_interrupted_call(case: Case) -> None:
    def interrupt(pipe: Any, step: int, timestep: Any, inputs: dict) -> dict:
        pipe._interrupt = step == 1
        return inputs

    pipe = case.pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter_for(case, pipe))
    expected = case.sample(guided, num_inference_steps=4)
    stopped = case.sample(guided, num_inference_steps=4, callback_on_step_end=interrupt)
    assert guided.nft_stats.steps == 2
    assert not torch.equal(stopped, expected)
    assert torch.equal(case.sample(guided, num_inference_steps=4), expected)


# Several users of one model.


def test_two_threads() -> None:
    """The second call is refused, and neither it nor its error touches the first."""
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))
    expected, errors = sample(guided), []

    def second() -> None:
        try:
            sample(guided, nft_strength=3.0)
        except GuidanceError as error:
            errors.append(str(error))

    def meanwhile(pipe: Any, step: int, timestep: Any, inputs: dict) -> dict:
        if step == 0:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
            assert guided.nft_stats.tilts.item() == guided.nft_config.tilt, "no record of a call that did not run"
            guided.set_nft_strength(1.0)  # the running call can still be changed
        return inputs

    guided.nft_stats = None
    assert torch.equal(sample(guided, callback_on_step_end=meanwhile), expected)
    assert len(errors) == 1 and "being guided by another call that has not ended" in errors[0]
    assert guided.nft_stats.steps == 3
    assert torch.equal(sample(guided), expected)


def test_an_engine_that_could_not_be_installed_leaves_the_denoiser_free(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))
    with monkeypatch.context() as patch:
        patch.setattr("nft_pipeline.engine.terms.Term.listen", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sample(guided)
    assert guided.nft_stats is None
    sample(guided)
    assert guided.nft_stats.steps == 3


def test_the_adapters_own_lora_loaded_as_a_style() -> None:
    pipe = tiny_pipe()
    adapter = tiny_adapter(pipe.transformer)
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    expected = sample(guided)
    pipe.load_lora_weights(dict(adapter.lora), adapter_name="style")
    with pytest.raises(AdapterError, match=r"LoRA style is the adapter's own LoRA, loaded a second time and active"):
        sample(guided)
    pipe.disable_lora()
    assert torch.equal(sample(guided), expected), "switched off it does no harm"
    pipe.enable_lora()
    pipe.set_adapters(["style"], [0.0])
    torch.testing.assert_close(sample(guided), expected)
    pipe.delete_adapters("style")
    torch.testing.assert_close(sample(guided), expected)
    pipe.load_lora_weights(random_lora(pipe.transformer, seed=8), adapter_name="other")
    assert not torch.equal(sample(guided), expected), "another LoRA is welcome"


def test_peft_switches_our_lora_on_when_the_last_active_one_is_deleted() -> None:
    """Guided calls are right all the same; stock ones have it on, as peft means it, until the user takes it out."""
    pipe = tiny_pipe()
    base = sample(pipe)
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))
    expected = sample(guided)
    pipe.load_lora_weights(random_lora(pipe.transformer, seed=8), adapter_name="style")
    pipe.delete_adapters("style")
    assert not torch.equal(sample(pipe), base)
    assert torch.equal(sample(guided, nft_strength=0), base)
    torch.testing.assert_close(sample(guided), expected)
    pipe.disable_lora()
    assert torch.equal(sample(pipe), base)
    torch.testing.assert_close(sample(guided), expected)
    assert torch.equal(sample(guided.unwrap()), base)


def test_a_text_encoders_lora_in_an_adapter() -> None:
    pipe = tiny_pipe()
    adapter = tiny_adapter(pipe.transformer)
    layer = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    faulty = {
        **adapter.lora,
        f"{layer}.lora_A.weight": torch.randn(2, 8),
        f"{layer}.lora_B.weight": torch.randn(8, 2),
    }
    with pytest.raises(AdapterError, match=r"belongs to a text encoder; the prompt is encoded once for both passes"):
        DiffusionNFTPipeline.from_pipe(pipe, replace(adapter, lora=faulty))
