"""The latents of the shapes model, and the two scripts that train it on them."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.models import shipped_model
from nft_pipeline.training.shapes.latents import PatchComponents, to_patches
from nft_pipeline.training.shapes.train_base import BaseTraining, train_base
from nft_pipeline.training.shapes.train_vae import train_vae
from nft_pipeline.training.shapes.world import draw, sample_scene


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(20)
    return np.stack([draw(sample_scene(rng, stray=1)) for _ in range(100)])


@pytest.fixture(scope="module")
def components():
    return PatchComponents.of_drawn_scenes(16, scenes=500)


def test_every_latent_channel_carries_something(pictures, components):
    latents = components.encode(pictures)
    assert latents.shape == (100, 16, 8, 8)
    spread = latents.std((0, 2, 3))
    assert spread.min() > 0.3 and spread[0] > 2 * spread[-1]
    assert latents.square().mean() == pytest.approx(1.0, abs=0.1)


def test_the_latents_keep_the_picture(pictures, components):
    channels = components.encode(pictures).flatten(2).transpose(1, 2)
    back = (channels / components.gain) @ components.components.T + components.mean
    patches = to_patches(pictures)
    assert (back - patches).square().mean() < 0.02 * patches.var()


def test_the_components_do_not_depend_on_the_number_of_threads(components):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        again = PatchComponents.of_drawn_scenes(16, scenes=500)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(again.components, components.components, rtol=0, atol=1e-4)


def test_patches_are_cut_where_they_stand():
    picture = np.zeros((1, 64, 64, 3), np.uint8)
    picture[0, 8:16, 24:32, 1] = 255  # second row of patches, fourth column
    patches = to_patches(picture)
    assert patches.shape == (1, 64, 192)
    assert (patches[0].max(1).values > 0).nonzero().flatten().tolist() == [8 + 3]
    assert (patches[0, 11].view(3, 64) == torch.tensor([[-1.0], [1.0], [-1.0]])).all()


def test_the_shipped_vae_works_on_these_latents(pictures):
    vae = AutoencoderKL.from_pretrained(shipped_model("shapes") / "vae")
    latents = PatchComponents.of_drawn_scenes(16).encode(pictures)
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor
    with torch.no_grad():
        z = (vae.encode(x).latent_dist.mode() - shift) * scale
        y = vae.decode(latents / scale + shift).sample
    assert (z - latents).square().mean() < 0.01
    assert (y - x).abs().mean() < 0.03


def test_both_scripts_write_what_diffusers_loads(components, tmp_path, monkeypatch):
    monkeypatch.setattr(PatchComponents, "of_drawn_scenes", lambda channels: components)
    train_vae(steps=2, scenes=8, batch=2).save_pretrained(tmp_path / "vae")
    settings = BaseTraining(scenes=8, steps=2, batch=4, stray=1)
    train_base(tmp_path / "vae", settings, tmp_path / "one")
    train_base(tmp_path / "vae", settings, tmp_path / "two", start=tmp_path / "one")
    assert str(tmp_path) not in (tmp_path / "two" / "vae" / "config.json").read_text()
    pipe = DiffusionNFTPipeline.from_pretrained(str(tmp_path / "two"))
    picture = pipe("a red circle", num_inference_steps=1).images[0]
    assert picture.size == (64, 64) and pipe.call_defaults["max_sequence_length"] == 0
