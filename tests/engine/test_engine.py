"""NFTEngine without a pipeline: any way of calling the denoiser is understood, and its output keeps its form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from helpers.tiny import TEXT_WIDTH, tiny_adapter, tiny_transformer
from nft_pipeline.engine.engine import NFTEngine
from nft_pipeline.engine.injection import adapter_names, inject_lora, remove_lora
from nft_pipeline.engine.terms import Term
from nft_pipeline.settings import GuidanceSettings


def random_inputs(batch: int = 2) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(batch, 4, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(batch, 3, 2 * TEXT_WIDTH, generator=generator),
        "pooled_projections": torch.randn(batch, 2 * TEXT_WIDTH, generator=generator),
        "timestep": torch.full((batch,), 600.0),
    }


@pytest.mark.parametrize("doubled", [False, True])
@torch.no_grad()
def test_every_way_of_calling(doubled: bool) -> None:
    denoiser = tiny_transformer()
    adapter = tiny_adapter(denoiser, tilt=3.0)
    name = inject_lora(denoiser, adapter.lora, "transformer")
    inputs = random_inputs()
    plain = denoiser(**inputs).sample
    engine = NFTEngine(denoiser, [Term(adapter, name, 3.0)], GuidanceSettings(), doubled=lambda inputs: doubled)
    with engine:
        named = denoiser(**inputs, return_dict=False)
        model_output = denoiser(**inputs)
        positional = denoiser(*inputs.values(), return_dict=False)
        scalar = denoiser(**{**inputs, "timestep": torch.tensor([600.0])}, return_dict=False)
    assert isinstance(named, tuple) and isinstance(model_output, Transformer2DModelOutput)
    assert not torch.allclose(named[0], plain, atol=1e-3)
    for output in (model_output.sample, positional[0], scalar[0]):
        torch.testing.assert_close(output, named[0], atol=1e-6, rtol=0)
    stats = engine.stats()
    assert stats.alpha.shape == (4, 1 if doubled else 2)
    torch.testing.assert_close(stats.noise_level, torch.full_like(stats.alpha, 0.6))
    assert torch.equal(denoiser(**inputs).sample, plain)


@torch.no_grad()
def test_samples_at_different_noise_levels_are_in_or_out_of_the_interval_one_by_one() -> None:
    denoiser = tiny_transformer()
    adapter = tiny_adapter(denoiser, kind="policy")
    name = inject_lora(denoiser, adapter.lora, "transformer")
    inputs = {**random_inputs(3), "timestep": torch.tensor([900.0, 500.0, 100.0])}
    plain = denoiser(**inputs).sample
    with NFTEngine(denoiser, [Term(adapter, name, 2.0)], GuidanceSettings(interval=(0.4, 0.6))) as engine:
        guided = denoiser(**inputs).sample
    assert torch.equal(guided[0], plain[0]) and torch.equal(guided[2], plain[2])
    assert not torch.equal(guided[1], plain[1])
    assert engine.stats().scale.tolist() == [[0.0, 1.0, 0.0]]
    assert engine.stats().passes.tolist() == [2]


def test_names_of_injected_loras() -> None:
    denoiser = tiny_transformer()
    layers = dict(denoiser.named_modules())
    adapter = tiny_adapter(denoiser)
    assert [inject_lora(denoiser, adapter.lora, "transformer") for _ in range(3)] == ["nft", "nft_2", "nft_3"]
    remove_lora(denoiser, "nft_2")
    assert adapter_names(denoiser) == {"nft", "nft_3"}
    assert inject_lora(denoiser, adapter.lora, "transformer") == "nft_2"
    for name in ("nft", "nft_2", "nft_3", "nft"):
        remove_lora(denoiser, name)
    assert dict(denoiser.named_modules()) == layers
    assert not hasattr(denoiser, "peft_config")
