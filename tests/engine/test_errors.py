"""Every error of the engine and the pipeline: what happened, the value seen, what was expected, what to do next."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
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
from nft_pipeline.adapter import Adapter, AdapterError
from nft_pipeline.adapters.alpha_head import AlphaHead
from nft_pipeline.engine.engine import NFTEngine
from nft_pipeline.engine.terms import Term
from nft_pipeline.errors import FamilyError, GuidanceError
from nft_pipeline.families.forward_call import bind_inputs
from nft_pipeline.laws import LAWS
from nft_pipeline.pipeline import DiffusionNFTPipeline
from nft_pipeline.settings import GuidanceSettings

BAD_ARGUMENTS = [
    ({"nft_strength": math.nan}, "nft_strength is nan, expected a finite number: 0 is the base model"),
    ({"nft_strength": math.inf}, "nft_strength is inf, expected a finite number"),
    ({"nft_strength": "1"}, "nft_strength is '1', expected a finite number"),
    ({"nft_strength": True}, "nft_strength is True, expected a finite number"),
    ({"nft_beta": 0}, "nft_beta is 0, expected a finite number above 0"),
    ({"nft_beta": -1.0}, "nft_beta is -1.0, expected a finite number above 0"),
    ({"nft_beta": math.inf}, "nft_beta is inf, expected a finite number above 0"),
    ({"nft_beta": "a"}, "nft_beta is 'a', expected a finite number above 0"),
    ({"nft_beta": 0.5, "nft_strength": 1.0}, "nft_strength=1.0 and nft_beta=0.5 were both given"),
    ({"nft_law": "ods"}, f"nft_law is 'ods', expected one of {', '.join(map(repr, LAWS))}. Did you mean \"odds\"?"),
    ({"nft_law": 3}, f"nft_law is 3, expected one of {', '.join(map(repr, LAWS))}."),
    ({"nft_interval": (0.9, 0.1)}, "nft_interval is (0.9, 0.1), expected (low, high) with 0 <= low <= high <= 1"),
    ({"nft_interval": (0, 500)}, "nft_interval is (0, 500), expected (low, high)"),
    ({"nft_interval": (0.1, math.nan)}, "nft_interval is (0.1, nan), expected (low, high)"),
    ({"nft_interval": 0.5}, "nft_interval is 0.5, expected (low, high)"),
    ({"nft_interval": "01"}, "nft_interval is '01', expected (low, high)"),
]


@pytest.fixture(scope="module")
def guided() -> Any:
    pipe = tiny_pipe()
    return DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))


@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_refused_before_anything_runs(guided: Any, arguments: dict, message: str) -> None:
    with counted_forwards(guided.transformer) as forwards, pytest.raises(GuidanceError, match=re.escape(message)):
        sample(guided, **arguments)
    assert forwards == [0]


def test_odds_with_a_policy_adapter() -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, kind="policy"))
    with pytest.raises(GuidanceError, match=r"needs a positive adapter.*'tiny' is a policy adapter"):
        sample(guided, nft_law="odds")


@pytest.mark.parametrize(
    "arguments", [{"nft_strength": 1.0}, {"nft_beta": 1.0}, {"nft_law": "nft"}, {"nft_interval": (0.0, 1.0)}]
)
def test_nft_arguments_without_an_adapter(arguments: dict) -> None:
    bare = DiffusionNFTPipeline.from_pipe(tiny_pipe())
    with pytest.raises(GuidanceError, match=f"{next(iter(arguments))} was given, but no adapter is loaded"):
        sample(bare, **arguments)


def test_the_factory_is_not_a_pipeline() -> None:
    with pytest.raises(TypeError, match=r"use DiffusionNFTPipeline.from_pretrained\(base, nft_adapter=...\)"):
        DiffusionNFTPipeline()
    with pytest.raises(GuidanceError, match="from_pipe got a str, expected a diffusers pipeline object"):
        DiffusionNFTPipeline.from_pipe("shapes")


def refused(pipe: Any, adapter: Adapter, error: type[Exception], message: str) -> None:
    before = state_of(pipe.transformer)
    with pytest.raises(error, match=message):
        DiffusionNFTPipeline.from_pipe(pipe, adapter)
    assert_same_state(before, state_of(pipe.transformer))


def test_an_adapter_for_another_base_model() -> None:
    pipe = tiny_pipe()
    adapter = tiny_adapter(tiny_pipe(layers=1).transformer)
    refused(pipe, adapter, AdapterError, r"made for another base model(.|\n)*tiny/sd3")


def test_a_lora_layer_the_model_does_not_have() -> None:
    pipe = tiny_pipe()
    adapter = tiny_adapter(pipe.transformer)
    lora = {key.replace("transformer_blocks.1", "transformer_blocks.9"): value for key, value in adapter.lora.items()}
    refused(pipe, dataclasses.replace(adapter, lora=lora), AdapterError, "LoRA layers match(.|\n)*blocks.9")


def test_a_positive_adapter_without_its_head() -> None:
    pipe = tiny_pipe()
    adapter = dataclasses.replace(tiny_adapter(pipe.transformer), head=None)
    refused(pipe, adapter, AdapterError, "there is no alpha head")


def test_a_head_that_reads_a_module_the_model_does_not_have() -> None:
    pipe = tiny_pipe()
    adapter: Any = tiny_adapter(pipe.transformer)
    head = AlphaHead(dataclasses.replace(adapter.head.config, tap="conv_norm_out"))
    refused(
        pipe, dataclasses.replace(adapter, head=head), GuidanceError, "'conv_norm_out', which SD3Transformer2DModel"
    )


def test_a_component_the_pipeline_does_not_have() -> None:
    pipe = tiny_pipe()
    adapter = tiny_adapter(pipe.transformer)
    lora = {key.replace("transformer.", "unet.", 1): value for key, value in adapter.lora.items()}
    adapter = Adapter(dataclasses.replace(adapter.config, component="unet"), lora, adapter.head)
    refused(pipe, adapter, FamilyError, "StableDiffusion3Pipeline has no 'unet', which the adapter is for")


def test_a_call_with_arguments_the_denoiser_does_not_take() -> None:
    with pytest.raises(FamilyError, match=r"was called with arguments it does not take: .*colour"):
        bind_inputs(tiny_pipe().transformer, (torch.zeros(1),), {"colour": 1})


def test_a_policy_without_a_head_cannot_pose_as_positive() -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))
    broken = dataclasses.replace(guided.nft_adapters["default"], head=None)
    engine = NFTEngine(pipe.transformer, [Term(broken, "nft", 1.0)], GuidanceSettings())
    with engine, pytest.raises(GuidanceError, match="'tiny' is positive but has no alpha head"):
        sample(pipe)


def test_a_head_that_gives_nan(guided: Any) -> None:
    before = state_of(guided.transformer)
    bias = guided.nft_adapters["default"].head.attention_out.bias
    with torch.no_grad():
        bias.fill_(math.nan)
    with pytest.raises(GuidanceError, match=r"the alpha head of 'tiny' gave \[nan\] at noise level \[1.0\]"):
        sample(guided)
    with torch.no_grad():
        bias.zero_()
    assert_same_state(before, state_of(guided.transformer))


def test_a_tap_that_does_not_run() -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))
    engine = NFTEngine(pipe.transformer, [Term(guided.nft_adapters["default"], "nft", 1.0)], GuidanceSettings())
    # A cache that goes round the module looks the same to the engine: the module it listens at is never called.
    pipe.transformer.norm_out = copy.deepcopy(pipe.transformer.norm_out)
    message = r"the module 'norm_out', which the alpha head of 'tiny' reads, did not run at noise level \[1.0\]"
    with engine, pytest.raises(GuidanceError, match=message):
        sample(pipe)


def test_loras_unloaded_behind_our_back() -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))
    expected = sample(guided)
    pipe.unload_lora_weights()
    with pytest.raises(
        AdapterError, match=r"the nft LoRA is on 0 layers .*, expected 15: .*Call load_nft_adapter again"
    ):
        sample(guided)
    guided.load_nft_adapter(guided.nft_adapters["default"])
    assert torch.equal(sample(guided), expected)


def test_a_fused_lora() -> None:
    pipe = tiny_pipe()
    load_style(pipe)
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))
    expected = sample(guided)
    pipe.fuse_lora(adapter_names=["style"])
    with pytest.raises(AdapterError, match=r"LoRA style is fused into 15 layers that carry nft.*unfuse_lora\(\)"):
        sample(guided)
    pipe.unfuse_lora()
    torch.testing.assert_close(sample(guided), expected, atol=1e-5, rtol=0)
    pipe.fuse_lora(adapter_names=["nft"])
    for act in (lambda: sample(guided), guided.unwrap, guided.unload_nft_adapter):
        with pytest.raises(AdapterError, match="LoRA nft is fused into 15 layers"):
            act()
    pipe.unfuse_lora()
    torch.testing.assert_close(sample(guided), expected, atol=1e-5, rtol=0)
    assert guided.unwrap() is pipe


def test_saving_with_other_loras_loaded(tmp_path: Any) -> None:
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))
    pipe.load_lora_weights(random_lora(pipe.transformer, seed=1), adapter_name="style")
    with pytest.raises(GuidanceError, match="LoRA style is loaded, and a saved pipeline cannot hold it"):
        guided.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "call_defaults.json is no JSON"),
        ("[1]", r"call_defaults.json has \['list'\], expected an object"),
        ('{"steps": 3}', r"call_defaults.json has \['steps'\], expected an object with arguments of StableDiffusion3"),
    ],
)
def test_faulty_call_defaults(tmp_path: Any, text: str, message: str) -> None:
    tiny_pipe().save_pretrained(tmp_path)
    (tmp_path / "call_defaults.json").write_text(text)
    with pytest.raises(GuidanceError, match=message):
        DiffusionNFTPipeline.from_pretrained(tmp_path)
