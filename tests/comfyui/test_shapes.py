"""The shipped models' text encoders and VAEs for ComfyUI, against the pipelines' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import fake_comfyui as fake
from nft_pipeline import DiffusionNFTPipeline, models
from nft_pipeline.adapter import read_adapter
from nft_pipeline.comfy_nodes.shipped import ShippedText, ShippedVAE, refuse_large_pictures
from nft_pipeline.errors import GuidanceError
from nft_pipeline.models import MODELS, shipped_model


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pipe(name: str) -> Any:
    return DiffusionNFTPipeline.from_pretrained(name)


@pytest.fixture(scope="module")
def folder(name: str) -> Path:
    found = shipped_model(name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "prompt",
    ["a red circle left of a cross", 'a sign that says "HELP"', "cat face", "", " ".join(["a small ring"] * 9)],
)
def test_words_become_the_pipelines_conditioning(prompt: str, pipe: Any, folder: Path) -> None:
    with torch.no_grad():
        words, _, pooled, _ = pipe.encode_prompt(
            prompt, None, None, max_sequence_length=0, do_classifier_free_guidance=False
        )
    text = ShippedText(folder)
    ((found, more),) = text.encode_from_tokens_scheduled(text.tokenize(prompt))
    torch.testing.assert_close(found, words)
    torch.testing.assert_close(more["pooled_output"], pooled)


def test_latents_become_the_pipelines_pictures_and_back(pipe: Any, folder: Path) -> None:
    vae, generator = ShippedVAE(folder), torch.Generator().manual_seed(0)
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


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The nodes, on the fake of ComfyUI."""
    fake.install(monkeypatch, tmp_path)
    from nft_pipeline.comfy_nodes import nodes

    return nodes


@pytest.mark.parametrize("values", [{}, *({"model": name} for name in MODELS)])
def test_the_node_gives_model_clip_and_vae(values: dict[str, str], nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from nft_pipeline.comfy_nodes.nodes.shapes_model import NFTShapesModel

    loaded: list[str] = []
    load = nodes.host.load_model
    monkeypatch.setattr(nodes.host, "load_model", lambda path, around: loaded.append(path) or load(path, around))
    model, clip, vae = NFTShapesModel.execute(**values).args
    assert isinstance(model, fake.ModelPatcher) and isinstance(clip, ShippedText) and isinstance(vae, ShippedVAE)
    assert [Path(path).parent.parent.name for path in loaded] == [values.get("model", "shapes")]
    assert (
        refuse_large_pictures in model.model_options["transformer_options"]["wrappers"]["sampler_sample"]["nft_model"]
    )


def test_a_model_that_the_node_pack_leaves_out_is_not_offered_and_a_sentence_says_where_it_is(
    nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nft_pipeline.comfy_nodes.nodes import shapes_model

    monkeypatch.setattr(shapes_model, "MODELS", ("shapes",))
    monkeypatch.setattr(models, "MODELS", ("shapes",))
    (offered,) = shapes_model.NFTShapesModel.define_schema().inputs
    assert offered.facts["options"] == ["shapes"]
    # ComfyUI's own check of a choice would name neither the reason nor the remedy.
    assert shapes_model.NFTShapesModel.validate_inputs(model="emoji") is True
    with pytest.raises(GuidanceError, match=r"model is 'emoji', and these nodes have shapes: .*clone the repository"):
        shapes_model.NFTShapesModel.execute("emoji")


def test_the_shipped_adapters_are_offered(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from nft_pipeline.comfy_nodes.nodes.inspection import NFTAdapterInfo

    folders = ["emoji-3d", "emoji-words", "emoji-likes"]  # as they ship, without a file for models/loras
    assert nodes.host.adapter_names() == folders
    nodes.host.offer_shipped_adapters()
    assert nodes.host.adapter_names() == ["shapes-follow.safetensors", "shapes-warm.safetensors", *folders]
    assert "everything drawn is red or orange" in NFTAdapterInfo.execute("shapes-warm.safetensors").args[0]
    for name in folders:
        config = read_adapter(name).config
        text = NFTAdapterInfo.execute(name).args[0]
        assert f"{name}: {config.kind}" in text and config.reward["description"] in text
        assert nodes.host.file_identity(name).startswith(f"{name}:")
    monkeypatch.setattr(nodes.host, "ADAPTERS", ("shapes-warm", "shapes-follow"))  # as in the node pack
    assert nodes.host.adapter_names() == ["shapes-follow.safetensors", "shapes-warm.safetensors"]
