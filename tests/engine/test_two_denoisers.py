"""Wan 2.2: one transformer for high noise, one for low. An adapter changes both, or one of them; the dial is one."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from helpers.tiny import assert_same_state, random_lora, state_of
from helpers.zoo import CASES, adapter_for
from nft_pipeline.adapter import Adapter, AdapterError, read_adapter, write_adapter
from nft_pipeline.engine import swapping
from nft_pipeline.pipeline import DiffusionNFTPipeline

WAN = CASES["WanPipeline"]
CALL: dict[str, Any] = {"num_inference_steps": 4}


def two_transformers() -> Any:
    pipe = WAN.pipe()
    second = copy.deepcopy(pipe.transformer)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in second.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    pipe.register_modules(transformer_2=second)
    pipe.register_to_config(boundary_ratio=0.8)
    return pipe


def adapter_of_both(pipe: Any, *, kind: str = "policy") -> Adapter:
    adapter = adapter_for(WAN, WAN.pipe(), kind=kind)
    second = random_lora(pipe.transformer_2, seed=8, component="transformer_2")
    return replace(adapter, lora={**adapter.lora, **second})


def lora_on(adapter: Adapter, *components: str, **call: Any) -> torch.Tensor:
    pipe = two_transformers()
    for component in components:
        part = {key: tensor for key, tensor in adapter.lora.items() if key.startswith(f"{component}.")}
        getattr(pipe, component).load_lora_adapter(part, prefix=component, adapter_name="x")
    return WAN.sample(pipe, **CALL, **call)


@pytest.mark.parametrize("cfg", [False, True], ids=["cfg_free", "cfg"])
def test_strength_0_is_stock_and_policy_at_1_is_both_loras_on(cfg: bool) -> None:
    pipe = two_transformers()
    stock, before = WAN.sample(pipe, cfg=cfg, **CALL), [state_of(pipe.transformer), state_of(pipe.transformer_2)]
    adapter = adapter_of_both(pipe)
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    assert torch.equal(WAN.sample(guided, cfg=cfg, nft_strength=0, **CALL), stock)
    expected = lora_on(adapter, "transformer", "transformer_2", cfg=cfg)
    torch.testing.assert_close(WAN.sample(guided, cfg=cfg, **CALL), expected, atol=1e-5, rtol=0)
    for one in ("transformer", "transformer_2"):
        assert (lora_on(adapter, one, cfg=cfg) - expected).abs().max() > 1e-3, "both are at work in this call"
    guided.unwrap()
    for denoiser, state in zip((pipe.transformer, pipe.transformer_2), before, strict=True):
        assert_same_state(state, state_of(denoiser))


def test_one_record_and_one_alpha_through_both() -> None:
    pipe = two_transformers()
    adapter = adapter_of_both(pipe, kind="positive")
    adapter = replace(adapter, config=replace(adapter.config, base_rate=0.4))
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    WAN.sample(guided, [0, 1], cfg=True, **CALL)
    stats = guided.nft_stats
    assert stats.passes.tolist() == [4] * 4 and stats.alpha.shape == (4, 2) and not stats.alpha.isnan().any()
    assert stats.noise_level.diff(dim=0).max() < 0
    assert (stats.noise_level < 0.8).any() and (stats.noise_level > 0.8).any(), "both are at work in this call"
    WAN.sample(guided, [0, 1], nft_mode="single", nft_law="nft", **CALL)
    single = guided.nft_stats
    torch.testing.assert_close(single.scale[1:], 2.0 * single.alpha[:-1])
    assert single.passes.tolist() == [1] * 4


def test_an_adapter_of_one_denoiser_leaves_the_other_and_says_so() -> None:
    pipe = two_transformers()
    adapter = adapter_for(WAN, WAN.pipe(), kind="policy")
    with pytest.warns(UserWarning, match='adapter "tiny" has no LoRA for transformer_2: steps that run on it stay'):
        guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    torch.testing.assert_close(WAN.sample(guided, **CALL), lora_on(adapter, "transformer"), atol=1e-5, rtol=0)
    guided.unwrap()
    second = {key.replace("transformer.", "transformer_2.", 1): tensor for key, tensor in adapter.lora.items()}
    with pytest.warns(UserWarning, match="has no LoRA for transformer: steps"):
        guided = DiffusionNFTPipeline.from_pipe(pipe, replace(adapter, lora=second))
    expected = lora_on(replace(adapter, lora=second), "transformer_2")
    torch.testing.assert_close(WAN.sample(guided, **CALL), expected, atol=1e-5, rtol=0)


def test_an_adapter_of_both_on_a_pipeline_with_one() -> None:
    adapter = adapter_of_both(two_transformers())
    one = WAN.pipe()
    before = state_of(one.transformer)
    with pytest.raises(AdapterError, match="has a LoRA for transformer_2, which this pipeline does not have"):
        DiffusionNFTPipeline.from_pipe(one, adapter)
    assert_same_state(before, state_of(one.transformer))


def test_a_fault_in_the_second_loads_neither() -> None:
    pipe = two_transformers()
    adapter = adapter_of_both(pipe)
    lora = {key.replace("transformer_2.blocks.0", "transformer_2.blocks.9"): t for key, t in adapter.lora.items()}
    before = [state_of(pipe.transformer), state_of(pipe.transformer_2)]
    with pytest.raises(AdapterError, match=r"blocks\.9"):
        DiffusionNFTPipeline.from_pipe(pipe, replace(adapter, lora=lora))
    for denoiser, state in zip((pipe.transformer, pipe.transformer_2), before, strict=True):
        assert_same_state(state, state_of(denoiser))


def test_on_disk_and_back(tmp_path: Any) -> None:
    adapter = adapter_of_both(two_transformers(), kind="positive")
    again = read_adapter(write_adapter(tmp_path / "both", adapter))
    assert again.config == adapter.config and again.lora.keys() == adapter.lora.keys()
    assert all(torch.equal(again.lora[key], tensor) for key, tensor in adapter.lora.items())


def test_a_swap_changes_both_or_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = two_transformers()
    first = adapter_of_both(pipe)
    other = replace(first, lora={key: tensor * 0.5 for key, tensor in first.lora.items()})
    guided = DiffusionNFTPipeline.from_pipe(pipe, other)
    expected = WAN.sample(guided, **CALL)
    guided.load_nft_adapter(first)
    before = [state_of(pipe.transformer), state_of(pipe.transformer_2)]
    key = next(key for key in reversed(other.lora) if key.startswith("transformer_2.") and ".lora_B." in key)
    with pytest.raises(AdapterError):  # the last matrix of the second denoiser does not fit
        guided.load_nft_adapter(replace(other, lora={**other.lora, key: other.lora[key][1:]}), hotswap=True)
    write = swapping._write

    def interrupted(weight: torch.Tensor, numbers: torch.Tensor) -> None:
        write(weight, numbers)
        if numbers is other.lora[key]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(swapping, "_write", interrupted)
        guided.load_nft_adapter(other, hotswap=True)
    for denoiser, state in zip((pipe.transformer, pipe.transformer_2), before, strict=True):
        assert_same_state(state, state_of(denoiser))
    guided.load_nft_adapter(other, hotswap=True)
    assert torch.equal(WAN.sample(guided, **CALL), expected)
