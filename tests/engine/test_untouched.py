"""Whatever happens in a call, the denoiser the user shares with us is afterwards what it was before."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.tiny import (
    assert_same_state,
    counted_forwards,
    load_style,
    random_lora,
    sample,
    state_of,
    tiny_adapter,
    tiny_pipe,
)
from nft_pipeline.errors import GuidanceError
from nft_pipeline.pipeline import DiffusionNFTPipeline


class Stop(Exception):
    """Raised on purpose."""


def raise_in_callback(pipe: Any, step: int, timestep: Any, inputs: dict) -> dict:
    if step == 1:
        raise Stop
    return inputs


def interrupt_in_callback(pipe: Any, step: int, timestep: Any, inputs: dict) -> dict:
    if step == 1:
        pipe._interrupt = True
    return inputs


class FailInForward:
    """A hook on the denoiser's last module that raises at the n-th forward, base pass or second pass."""

    def __init__(self, denoiser: Any, at: int, error: type[BaseException]) -> None:
        self.at, self.error, self.count = at, error, 0
        self.hook = denoiser.proj_out.register_forward_pre_hook(self)

    def __call__(self, module: torch.nn.Module, args: Any) -> None:
        self.count += 1
        if self.count == self.at:
            raise self.error


@pytest.mark.parametrize("style", [False, True], ids=["alone", "with_style"])
@pytest.mark.parametrize(
    "ending", ["success", "strength_0", "callback", "interrupt", "base_pass", "second_pass", "ctrl_c"]
)
def test_nothing_is_left_behind(ending: str, style: bool) -> None:
    pipe = tiny_pipe()
    if style:
        load_style(pipe)
    denoiser = pipe.transformer
    denoiser.proj_out.weight.requires_grad_(False)  # a mixture, so that a careless restore shows
    untouched, attributes, expected = state_of(denoiser), dict(pipe.__dict__), sample(pipe)
    attributes |= {key: value for key, value in pipe.__dict__.items() if key not in attributes}
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(denoiser))
    loaded = state_of(denoiser)

    if ending in ("success", "strength_0"):
        sample(guided, nft_strength=0 if ending == "strength_0" else 1)
    elif ending == "callback":
        with pytest.raises(Stop):
            sample(guided, callback_on_step_end=raise_in_callback)
    elif ending == "interrupt":
        with counted_forwards(denoiser) as forwards:
            sample(guided, callback_on_step_end=interrupt_in_callback)
        assert forwards == [4]
    else:
        at, error = {"base_pass": (3, Stop), "second_pass": (4, Stop), "ctrl_c": (4, KeyboardInterrupt)}[ending]
        failing = FailInForward(denoiser, at, error)
        with pytest.raises(error):
            sample(guided)
        failing.hook.remove()
    if ending in ("callback", "interrupt"):
        assert guided.nft_stats.passes.tolist() == [2, 2], "stats of the steps that ran"
    elif ending in ("base_pass", "second_pass", "ctrl_c"):
        assert guided.nft_stats.passes.tolist()[0] == 2

    assert_same_state(loaded, state_of(denoiser))
    assert torch.equal(sample(pipe), expected), "stock, with our LoRA on the denoiser"
    assert torch.equal(sample(guided, nft_strength=0), expected)
    assert guided.unwrap() is pipe
    assert_same_state(untouched, state_of(denoiser))
    assert torch.equal(sample(pipe), expected)
    assert {key: id(value) for key, value in attributes.items() if key != "_guidance_scale"} == {
        key: id(value) for key, value in pipe.__dict__.items() if key != "_guidance_scale"
    }


def test_a_ctrl_c_in_the_base_pass_is_put_right_too() -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))
    pipe.transformer.set_adapter("nft")  # as if the user had switched our LoRA on by its name
    pipe.transformer.requires_grad_(False)
    before = state_of(pipe.transformer)
    failing = FailInForward(pipe.transformer, 3, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        sample(guided)
    failing.hook.remove()
    assert_same_state(before, state_of(pipe.transformer))


def test_loading_and_unloading_keep_requires_grad_and_a_styles_weight() -> None:
    pipe = tiny_pipe()
    load_style(pipe)
    pipe.set_adapters(["style"], [0.4])
    for i, parameter in enumerate(pipe.transformer.parameters()):
        parameter.requires_grad_(i % 3 == 0)
    before, expected = state_of(pipe.transformer), sample(pipe)
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))
    ours = {n: p.requires_grad for n, p in pipe.transformer.named_parameters() if ".nft." in n}
    assert ours and not any(ours.values())
    assert pipe.get_active_adapters() == ["style"]
    assert torch.equal(sample(pipe), expected)
    guided.unload_nft_adapter()
    assert_same_state(before, state_of(pipe.transformer))


def test_a_style_loaded_after_the_adapter() -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, alpha=1.0))
    load_style(pipe)
    other = tiny_pipe()
    load_style(other)
    assert torch.equal(sample(guided, nft_strength=0), sample(other))
    other.load_lora_weights(random_lora(other.transformer), adapter_name="x")
    other.set_adapters(["style", "x"])
    torch.testing.assert_close(sample(guided, nft_beta=2.0, nft_law="nft"), sample(other), atol=1e-5, rtol=0)
    guided.unwrap()
    assert pipe.get_active_adapters() == ["style"]
    other.set_adapters(["style"])
    assert torch.equal(sample(pipe), sample(other))


def test_a_style_the_user_switched_off_stays_off_in_both_branches() -> None:
    pipe, other = tiny_pipe(), tiny_pipe()
    load_style(pipe)
    pipe.disable_lora()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, alpha=1.0))
    before = state_of(pipe.transformer)
    assert torch.equal(sample(guided, nft_strength=0), sample(other))
    other.load_lora_weights(random_lora(other.transformer), adapter_name="x")
    torch.testing.assert_close(sample(guided, nft_beta=2.0, nft_law="nft"), sample(other), atol=1e-5, rtol=0)
    assert_same_state(before, state_of(pipe.transformer))


def test_the_calls_lora_scale_is_for_the_users_loras_only() -> None:
    pipe, other = tiny_pipe(), tiny_pipe()
    for each in (pipe, other):
        load_style(each)
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, alpha=1.0))
    before = state_of(pipe.transformer)
    other.load_lora_weights(random_lora(other.transformer), adapter_name="x")
    other.set_adapters(["style", "x"], [0.25, 1.0])
    scaled = sample(guided, nft_beta=2.0, nft_law="nft", joint_attention_kwargs={"scale": 0.25})
    torch.testing.assert_close(scaled, sample(other), atol=1e-5, rtol=0)
    assert_same_state(before, state_of(pipe.transformer))
    with pytest.raises(GuidanceError, match=r"switches every LoRA off, the nft one too.*disable_lora"):
        sample(guided, joint_attention_kwargs={"scale": 0.0})


def test_two_guided_pipelines_over_one_model() -> None:
    pipe = tiny_pipe()
    before, expected = state_of(pipe.transformer), sample(pipe)
    alone = []
    for seed in (7, 8):
        guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, seed=seed))
        alone.append(sample(guided))
        guided.unwrap()
    first = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, seed=7))
    second = DiffusionNFTPipeline.from_pipe(first, tiny_adapter(pipe.transformer, seed=8))
    for _ in range(2):
        assert torch.equal(sample(first), alone[0])
        assert torch.equal(sample(second), alone[1])
    assert not torch.equal(alone[0], alone[1])
    assert torch.equal(sample(pipe), expected)
    assert first.unwrap() is pipe
    assert torch.equal(sample(second), alone[1])
    assert second.unwrap() is pipe
    assert_same_state(before, state_of(pipe.transformer))


def test_one_denoiser_is_not_guided_twice_at_once() -> None:
    pipe = tiny_pipe()
    first = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))
    second = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, seed=8))

    def inner_call(pipe: Any, step: int, timestep: Any, inputs: dict) -> dict:
        sample(second)
        return inputs

    before = state_of(pipe.transformer)
    with pytest.raises(GuidanceError, match="being guided by another call that has not ended"):
        sample(first, callback_on_step_end=inner_call)
    assert_same_state(before, state_of(pipe.transformer))
