"""The shapes model's text encoders and VAE for ComfyUI, against the pipeline's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import fake_comfyui as fake
from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.comfy_nodes.shapes import ShapesText, ShapesVAE, refuse_large_pictures
from nft_pipeline.errors import GuidanceError
from nft_pipeline.models import shipped_model


@pytest.fixture(scope="module")
def pipe() -> Any:
    return DiffusionNFTPipeline.from_pretrained("shapes")


@pytest.fixture(scope="module")
def folder() -> Path:
    found = shipped_model("shapes")
    assert found is not None
    return found


@pytest.mark.parametrize("prompt", ["a red circle left of a cross", "", " ".join(["a small ring"] * 9)])
def test_words_become_the_pipelines_conditioning(prompt: str, pipe: Any, folder: Path) -> None:
    with torch.no_grad():
        words, _, pooled, _ = pipe.encode_prompt(
            prompt, None, None, max_sequence_length=0, do_classifier_free_guidance=False
        )
    text = ShapesText(folder)
    ((found, more),) = text.encode_from_tokens_scheduled(text.tokenize(prompt))
    torch.testing.assert_close(found, words)
    torch.testing.assert_close(more["pooled_output"], pooled)


def test_latents_become_the_pipelines_pictures_and_back(pipe: Any, folder: Path) -> None:
    vae, generator = ShapesVAE(folder), torch.Generator().manual_seed(0)
    latents, pictures = torch.randn(2, 16, 8, 6, generator=generator), torch.rand(2, 70, 48, 4, generator=generator)
    with torch.no_grad():
        drawn = (pipe.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).movedim(1, -1)
        back = pipe.vae.encode(pictures[:, :64, :, :3].movedim(-1, 1) * 2 - 1).latent_dist.mean
    torch.testing.assert_close(vae.decode(latents), drawn)
    torch.testing.assert_close(vae.encode(pictures), back)


def test_a_picture_larger_than_it_can_draw_is_refused_in_a_sentence() -> None:
    def draw(guider: Any, sigmas: Any, extra_args: Any, callback: Any, noise: torch.Tensor, latent: Any) -> Any:
        return noise, latent

    def ask(height: int, width: int) -> Any:
        noise = torch.zeros(1, 16, height, width)
        return refuse_large_pictures(draw, None, None, {}, None, noise, "latent")

    assert ask(16, 16)[1] == "latent"
    with pytest.raises(GuidanceError, match="at most 128 x 128, and was asked for 1024 x 512"):
        ask(64, 128)


def test_the_node_gives_model_clip_and_vae_and_the_adapter_is_offered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake.install(monkeypatch, tmp_path)
    from nft_pipeline.comfy_nodes import nodes
    from nft_pipeline.comfy_nodes.nodes.inspection import NFTAdapterInfo
    from nft_pipeline.comfy_nodes.nodes.shapes_model import NFTShapesModel

    model, clip, vae = NFTShapesModel.execute().args
    assert isinstance(model, fake.ModelPatcher) and isinstance(clip, ShapesText) and isinstance(vae, ShapesVAE)
    assert (
        refuse_large_pictures in model.model_options["transformer_options"]["wrappers"]["sampler_sample"]["nft_model"]
    )
    assert nodes.host.adapter_names() == []
    nodes.host.offer_shipped_adapters()
    assert nodes.host.adapter_names() == ["shapes-follow.safetensors", "shapes-warm.safetensors"]
    assert "everything drawn is red or orange" in NFTAdapterInfo.execute("shapes-warm.safetensors").args[0]
