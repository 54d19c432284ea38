"""FLUX.2, Qwen-Image, Z-Image, Sana and Wan: the trainer calls the denoiser as the stock pipeline does, from the prompt
on, and a short run ends in an adapter that works."""

import numpy as np
import pytest
import torch

from helpers.tiny_run import SMALL
from helpers.whole import CALLS, save_whole, whole_pipe
from helpers.zoo_case import denoiser_of
from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import BaseModel, fingerprint, read_adapter
from nft_pipeline.families.forward_call import bind_inputs, output_tensor
from nft_pipeline.training.bases.base import rows_of
from nft_pipeline.training.bases.registry import train_base
from nft_pipeline.training.learn.learner import Learner
from nft_pipeline.training.run.trainer import train
from nft_pipeline.training.settings.config import TrainConfig
from nft_pipeline.training.show.live import Live

PROMPTS = ["a cat", "a red dog and two cow"]
# How the stock call is told that there is no classifier-free guidance, or how much.
GUIDANCE = {"QwenImagePipeline": ("true_cfg_scale", 0), "ZImagePipeline": ("guidance_scale", 1)}
VARIANTS = [(name, {}) for name in CALLS] + [("WanPipeline", {"num_frames": 5})]
IDS = [f"{name}{'-video' if more else ''}" for name, more in VARIANTS]


def stock_arguments(name, scale=1.0, **more):
    """Of a call of the stock pipeline for PROMPTS."""
    key, less = GUIDANCE.get(name, ("guidance_scale", 0))
    given = {**CALLS[name], **more, key: scale - less, "num_inference_steps": 2, "return_dict": False}
    if name == "SanaPipeline":
        given["use_resolution_binning"] = False
    if name == "QwenImagePipeline" and scale > 1:
        given["negative_prompt"] = [""] * len(PROMPTS)
    return {"prompt": list(PROMPTS), "output_type": "latent", **given}


def stock_call(pipe, name, scale=1.0, **more):
    """A stock call for PROMPTS: the denoiser's (inputs, output) at each step, and what came out."""
    seen = []
    hook = denoiser_of(pipe).register_forward_hook(
        lambda module, args, kwargs, output: seen.append((bind_inputs(module, args, kwargs), output_tensor(output))),
        with_kwargs=True,
    )
    try:
        torch.manual_seed(0)
        made = pipe(**stock_arguments(name, scale, **more))[0]
    finally:
        hook.remove()
    return seen, made


def base_of(pipe, name, scale=1.0, **more):
    return train_base(pipe, {**CALLS[name], **more, "num_inference_steps": 2, "guidance_scale": scale})


def state_of(base, inputs):
    """x_t (B, ...) and t of a stock call."""
    shape = torch.empty(base.latent_shape(len(PROMPTS)))
    x = inputs[base.family.state]
    x = base.unpack(torch.stack(list(x)) if isinstance(x, list) else x, shape)
    return x, base.family.noise_level(inputs, base.pipe.scheduler)


def assert_same(name, own, stock):
    if isinstance(stock, torch.Tensor):
        # Some schedulers count timesteps in whole numbers; the model embeds their value.
        torch.testing.assert_close(own.double(), stock.double(), rtol=1e-5, atol=1e-5, msg=lambda m: f"{name}: {m}")
    elif isinstance(stock, (list, tuple)):
        assert len(own) == len(stock), name
        for a, b in zip(own, stock, strict=True):
            assert_same(name, a, b)
    else:
        assert own == stock, name


@pytest.mark.parametrize(("name", "more"), VARIANTS, ids=IDS)
def test_the_denoiser_is_called_as_the_stock_pipeline_calls_it_and_answers_the_same(name, more):
    pipe = whole_pipe(name)
    seen, _ = stock_call(pipe, name, **more)
    base = base_of(pipe, name, **more)
    conditions = base.encode_prompts(PROMPTS)
    assert len(seen) == 2
    for inputs, output in seen:
        x_t, t = state_of(base, inputs)
        assert x_t.shape == base.latent_shape(2) and t.shape == (2,)
        own = base.inputs(x_t, t, conditions)
        told = {key: value for key, value in inputs.items() if value is not None and key not in ("self", "return_dict")}
        own = {key: value for key, value in own.items() if value is not None}
        scales = {"attention_kwargs", "joint_attention_kwargs"}
        assert own.keys() == told.keys() - scales and not any(told.get(key) for key in scales)
        for key, value in own.items():
            assert_same(key, value, told[key])
        with torch.no_grad():
            found = base.predict(x_t, t, conditions)
        expected = base.family.sign * base.unpack(output, x_t)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        other = base.predict(x_t, t, rows_of(conditions, [1, 0]))
        assert (other - found).abs().max() > 1e-3


@pytest.mark.parametrize(("name", "more"), VARIANTS, ids=IDS)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_samples_are_the_stock_pipelines(name, more, scale):
    """From the same noise, with classifier-free guidance and without, latents in the trainer's own shape and scale."""
    pipe = whole_pipe(name)
    base = base_of(pipe, name, scale, **more)
    noise = torch.randn(base.latent_shape(2), generator=torch.Generator().manual_seed(1))
    _, made = stock_call(pipe, name, scale, latents=base.start(noise), **more)
    own = base.sample_batch(base.encode_prompts(PROMPTS), noise, base.encode_empty())
    assert own.shape == noise.shape
    torch.testing.assert_close(own, base.finish(made, noise), rtol=1e-4, atol=1e-4)
    plain = base_of(pipe, name, **more)
    changed = (own - plain.sample_batch(plain.encode_prompts(PROMPTS), noise)).abs().max()
    assert changed > 1e-3 if scale > 1 else changed == 0


@pytest.mark.parametrize("name", CALLS)
def test_prompts_encoded_one_by_one_are_padded_to_what_they_are_together(name):
    base = base_of(whole_pipe(name), name)
    together, apart = base.encode_prompts(PROMPTS), base.encode_prompts(PROMPTS, batch=1)
    assert together.keys() == apart.keys()
    for key, value in together.items():
        torch.testing.assert_close(apart[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "more"), VARIANTS, ids=IDS)
def test_a_sample_depends_on_its_own_prompt_alone(name, more):
    pipe = whole_pipe(name)
    base = base_of(pipe, name, **more)
    conditions = base.encode_prompts(PROMPTS)
    together = base.sample(conditions, torch.tensor([1, 0]), seed=1, batch=2)
    apart = base.sample(conditions, torch.tensor([1, 0]), seed=1, batch=1)
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "more"), VARIANTS, ids=IDS)
def test_latents_decode_to_the_stock_pipelines_pictures(name, more):
    pipe = whole_pipe(name)
    base = base_of(pipe, name, **more)
    noise = torch.randn(base.latent_shape(2), generator=torch.Generator().manual_seed(1))
    given = {**stock_arguments(name, **more), "latents": base.start(noise), "output_type": "np"}
    stock = pipe(**given)[0]
    if name == "WanPipeline":
        stock = stock[:, stock.shape[1] // 2]
    own = base.decode_latents(base.sample_batch(base.encode_prompts(PROMPTS), noise))
    assert own.shape == stock.shape
    assert np.abs(own / 255 - stock).max() < 1 / 255


@pytest.mark.parametrize("name", CALLS)
def test_pictures_become_latents_in_the_scale_of_decoding(name):
    """What a VAE's encoder gives, rescaled for the denoiser and back, is what the decoder takes: its own code."""
    base = base_of(whole_pipe(name), name)
    height, width = base.resolution
    pictures = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    latents = base.encode_pictures(pictures)
    assert latents.shape == base.latent_shape(2) and latents.dtype == torch.float32
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    vae, frames = base.pipe.vae, name in ("QwenImagePipeline", "WanPipeline")
    code = vae.encode(x.unsqueeze(2) if frames else x)
    code = code.latent if name == "SanaPipeline" else code.latent_dist.mode()
    with torch.no_grad():
        straight = vae.decode(code, return_dict=False)[0]
        straight = straight[:, :, 0] if frames else straight
        torch.testing.assert_close(base.decode_vae(latents), straight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("scale", [1.5, 3.0])
def test_a_run_shows_itself_with_the_guidance_it_samples_with(name, scale):
    """Its pictures at strength 0 are the base model's, under classifier-free guidance too."""
    base = base_of(whole_pipe(name), name, scale)
    conditions, seeds = base.encode_prompts(PROMPTS), (5, 6)
    learner = Learner(base, conditions, TrainConfig.from_mapping({**SMALL, "base_model": "x", "prompts": "x"}))
    base_model = BaseModel(id="x", revision=None, fingerprint=fingerprint(base.denoiser))
    with Live(base, base_model, PROMPTS, batch=2).of(learner) as draw:
        drawn = draw(list(enumerate(seeds)), 0.0, "")
    learner.remove()
    shape = base.latent_shape(1)
    noise = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    own = base.decode_latents(base.sample_batch(conditions, noise, base.encode_empty()))
    assert np.abs(drawn.astype(int) - own).max() <= 1 and own.std() > 1


@pytest.mark.parametrize("name", CALLS)
def test_a_short_run_ends_in_an_adapter_that_changes_the_picture_at_strength_1_only(name, tmp_path):
    model = save_whole(name, tmp_path / "model")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    settings = {**SMALL, "base_model": model, "prompts": str(prompts), "lr": 0.05}
    settings |= {"pool_size": 8, "pool_batch": 4, "held_out_size": 4, "batch": 4, "head_batch": 4}
    config = TrainConfig.from_mapping({**settings, "steps": 3, "checkpoint_every": 0})
    result = train(config, tmp_path / "out", say=lambda line: None, device="cpu")
    adapter = read_adapter(result.folder)
    assert adapter.config.kind == "positive" and adapter.head is not None
    assert adapter.config.denoiser == type(denoiser_of(whole_pipe(name))).__name__
    assert any(value.abs().max() > 0 for key, value in adapter.lora.items() if "lora_B" in key)
    assert adapter.config.guidance_scale == (0.0 if name == "ZImagePipeline" else 1.0)

    pipe = DiffusionNFTPipeline.from_pretrained(model, str(result.folder))
    pipe.set_progress_bar_config(disable=True)
    stock = whole_pipe(name)

    def draw(pipe, **more):
        generator = torch.Generator().manual_seed(3)
        return pipe(generator=generator, **stock_arguments(name), **more)[0]

    plain = draw(stock)
    assert torch.equal(draw(pipe, nft_strength=0.0), plain)
    assert (draw(pipe, nft_strength=1.0) - plain).abs().max() > 1e-3
