"""Small, valid adapters for a tiny SD3 transformer. B is random: with B = 0 every test would pass in vain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nft_pipeline.adapter import Adapter, AdapterConfig, fingerprint
from nft_pipeline.adapters.alpha_head import AlphaHead, AlphaHeadConfig

RANK = 4
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "proj_in")


def tiny_sd3(layers: int = 2, seed: int = 0) -> nn.Module:
    """A random SD3Transformer2DModel of hidden width 16 * layers, 8 px latents, 16 channels."""
    from diffusers import SD3Transformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            num_layers=layers,
            attention_head_dim=16,
            num_attention_heads=layers,
            joint_attention_dim=24,
            caption_projection_dim=16 * layers,
            pooled_projection_dim=20,
            out_channels=16,
            pos_embed_max_size=8,
        )
    return model.eval()


def random_lora(denoiser: nn.Module, rank: int = RANK, seed: int = 1, size: float = 0.3) -> dict[str, Tensor]:
    """A LoRA on every attention projection and on the patch convolution, diffusers keys, scale baked."""
    generator = torch.Generator().manual_seed(seed)
    lora: dict[str, Tensor] = {}
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(TARGETS):
            shapes = (rank, module.in_features), (module.out_features, rank)
        elif isinstance(module, nn.Conv2d):
            shapes = (rank, module.in_channels, *module.kernel_size), (module.out_channels, rank, 1, 1)
        else:
            continue
        for side, shape in zip("AB", shapes, strict=True):
            lora[f"transformer.{name}.lora_{side}.weight"] = size * torch.randn(shape, generator=generator)
    return lora


def random_head(feature_dim: int = 32, text_dim: int | None = 24, seed: int = 2) -> AlphaHead:
    """A head whose output layers are random too, so that alpha is not 1/2 everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = AlphaHead(AlphaHeadConfig(feature_dim, text_dim, width=16, queries=2, layers=1, heads=2))
        for parameter in head.parameters():
            parameter.data.normal_(std=0.2)
    return head.eval().requires_grad_(False)


def config_values(model: nn.Module | None = None, kind: str = "positive", **changed: Any) -> dict[str, Any]:
    """The fields of a sound config as parsed JSON; `changed` overrides some."""
    values: dict[str, Any] = {
        "kind": kind,
        "name": "tiny-red",
        "beta": 1.0,
        "tilt": 2.0,
        "base_model": {
            "id": "someone/tiny-sd3",
            "revision": None,
            "fingerprint": fingerprint(model) if model is not None else "sha256:0123456789abcdef",
        },
        "denoiser": "SD3Transformer2DModel",
        "prediction": "flow",
        "rank": RANK,
        "reward": {"name": "red", "description": "the object is red — or nearly", "normaliser": None},
        "guidance_scale": 1.0,
        "resolution": [64, 48],
        "licence": "apache-2.0",
        "strength": 1.5,
        "component": "transformer",
        "base_rate": 0.31 if kind == "positive" else None,
        "training": {"steps": 100, "seeds": [0, 1], "note": "ångström"},
        "format_version": 1,
    }
    return values | changed


def tiny_adapter(denoiser: nn.Module | None = None, kind: str = "positive", seed: int = 1, **changed: Any) -> Adapter:
    """A valid adapter for `denoiser` (a tiny SD3 when None) with random B; `changed` overrides config fields."""
    denoiser = tiny_sd3() if denoiser is None else denoiser
    config = AdapterConfig.from_dict(config_values(denoiser, kind, **changed))
    lora = random_lora(denoiser, config.rank, seed)
    return Adapter(config, lora, random_head(seed=seed) if kind == "positive" else None)


def assert_same(found: Adapter, expected: Adapter) -> None:
    """Equal in every field and bit for bit in every tensor."""
    assert found.config == expected.config
    assert_same_tensors(found.lora, expected.lora)
    assert (found.head is None) == (expected.head is None)
    if found.head is not None and expected.head is not None:
        assert found.head.config == expected.head.config
        assert_same_tensors(found.head.state_dict(), expected.head.state_dict())


def assert_same_tensors(found: Any, expected: Any) -> None:
    """Same keys, dtypes and bits."""
    assert sorted(found) == sorted(expected)
    for key in expected:
        assert found[key].dtype == expected[key].dtype, key
        assert torch.equal(found[key], expected[key]), key
