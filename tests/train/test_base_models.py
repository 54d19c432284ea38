"""The trainer's own forward is the pipeline's: same arguments, same output, for every family it trains."""

import pytest
import torch

from helpers import whole
from helpers.pipelines_page import PAGE, trainable
from helpers.tiny import tiny_pipe
from helpers.zoo import CASES, denoiser_of
from helpers.zoo_case import WIDTH, WORDS, rows
from nft_pipeline.families.forward_call import bind_inputs
from nft_pipeline.files.discovery import classes_in, modules_of
from nft_pipeline.training.bases import known
from nft_pipeline.training.bases.base import TrainBase, rows_of
from nft_pipeline.training.bases.noising import interpolate, per_sample, raw_target, velocity, vp_norm
from nft_pipeline.training.bases.registry import TRAINABLE, train_base
from nft_pipeline.training.errors import TrainingError

FAMILIES = ["StableDiffusionPipeline", "StableDiffusionPipeline, v", "StableDiffusionXLPipeline"]
FAMILIES += ["StableDiffusion3Pipeline", "FluxPipeline"]


def conditions_of(base, count=3):
    """Random conditions, one row per prompt."""
    made = {"text": rows(list(range(count)), WORDS, WIDTH, seed=2)}
    return made if type(base).__name__ == "SDBase" else {**made, "pooled": rows(list(range(count)), WIDTH, seed=3)}


def base_of(name, **call):
    edge = 8 * 1
    given = {"num_inference_steps": 2, "guidance_scale": 1.0, "height": edge, "width": edge, **call}
    return train_base(CASES[name].pipe(), given)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_forward_is_the_pipelines(name):
    base = base_of(name)
    conditions = conditions_of(base)
    seen = []
    denoiser = denoiser_of(base.pipe)
    hook = denoiser.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((bind_inputs(module, args, kwargs), output[0])),
        with_kwargs=True,
    )
    base.sample(conditions, torch.tensor([0, 1, 2]), seed=1, batch=3)
    hook.remove()
    assert len(seen) == 2
    for inputs, output in seen:
        t = base.family.noise_level(inputs, base.pipe.scheduler)
        x = base.unpack(inputs[base.family.state], torch.empty(base.latent_shape(3)))
        if base.prediction != "flow":
            x = x * vp_norm(per_sample(t, x))
        with torch.no_grad():
            found = base.predict(x, t, conditions)
        torch.testing.assert_close(found, base.unpack(output, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_have_the_shape_that_training_takes_and_depend_on_the_prompt_only_through_their_row(name):
    base = base_of(name)
    conditions = conditions_of(base)
    all_at_once = base.sample(conditions, torch.tensor([2, 0, 1]), seed=1, batch=3)
    one_by_one = base.sample(conditions, torch.tensor([2, 0, 1]), seed=1, batch=1)
    assert all_at_once.shape == base.latent_shape(3)
    torch.testing.assert_close(all_at_once, one_by_one, rtol=1e-3, atol=1e-4)
    low, high = base.noise_range()
    t = torch.linspace(low + 0.01, high - 0.01, 3)
    assert base.predict(all_at_once, t, rows_of(conditions, [0, 1, 2])).shape == all_at_once.shape


@pytest.mark.parametrize("name", FAMILIES[:3])
def test_noise_levels_find_their_timesteps_back(name):
    base = base_of(name)
    low, high = base.noise_range()
    assert 0 < low < 0.05 and 0.9 < high < 1
    t = torch.linspace(low, high, 50)
    inputs = {"self": base.denoiser, "sample": torch.zeros(50, 1), "timestep": base.timestep(t)}
    torch.testing.assert_close(base.family.noise_level(inputs, base.pipe.scheduler), t, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", ["flow", "epsilon", "v", "sample"])
def test_every_prediction_is_turned_into_velocity_exactly(prediction):
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(5, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.93], dtype=torch.float64)
    x_t, y = interpolate(x_0, eps, t)
    torch.testing.assert_close(velocity(prediction, raw_target(prediction, x_0, eps, t), x_t, t), y)


def test_pictures_go_through_the_vae_and_back_in_the_scale_the_denoiser_knows():
    base = train_base(tiny_pipe())
    pictures = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8).numpy()
    latents = base.encode_pictures(pictures)
    vae = base.pipe.vae
    code = vae.encode(torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
    shift = vae.config.shift_factor or 0.0
    torch.testing.assert_close(latents, (code - shift) * vae.config.scaling_factor)
    assert base.decode_latents(latents).shape[0] == 2


@pytest.mark.parametrize(
    ("dtype", "decodes_in"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)],
)
def test_a_vae_decodes_in_the_runs_number_format_but_not_in_fp16(dtype, decodes_in):
    base = train_base(tiny_pipe(), dtype=dtype)
    seen = set()
    for layer in base.pipe.vae.decoder.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    base.decode_latents(torch.randn(base.latent_shape(1)))
    assert seen == {decodes_in}


def test_prompts_are_encoded_as_a_call_does_and_encoders_can_leave():
    base = train_base(tiny_pipe(), {"max_sequence_length": 4})
    conditions = base.encode_prompts(["a cat", "a dog"])
    assert conditions["text"].shape[0] == conditions["pooled"].shape[0] == 2
    assert not torch.equal(conditions["text"][0], conditions["text"][1])
    base.release()
    assert base.pipe.text_encoder is None and base.pipe.text_encoder_2 is None and base.pipe.vae is not None


def test_a_pipeline_that_cannot_be_trained_on_is_named():
    class OddPipeline: ...

    with pytest.raises(TrainingError, match=r"is a OddPipeline; the trainer supports .*StableDiffusion3Pipeline"):
        train_base(OddPipeline())


def test_frames_of_a_model_that_draws_single_pictures_are_refused():
    with pytest.raises(TrainingError, match="num_frames is 5, and a StableDiffusion3Pipeline draws single pictures"):
        train_base(tiny_pipe(), {"num_frames": 5})


def test_wan_with_two_transformers_is_refused():
    pipe = CASES["WanPipeline"].pipe()
    pipe.transformer_2 = pipe.transformer
    with pytest.raises(TrainingError, match=r"a Wan with two transformers.*Set base_model to Wan 2\.1"):
        train_base(pipe)


# A trainable family is one file, and what must follow it is said here.


def test_every_trainable_pipeline_is_tested():
    tested = {name.partition(",")[0] for name in FAMILIES} | set(whole.CALLS)
    missing = sorted(set(TRAINABLE) - tested)
    assert not missing, f"{missing} of training/bases/known have no test: add them to CALLS in tests/helpers/whole.py"
    assert tested <= set(TRAINABLE)


def test_every_class_of_the_room_says_which_pipeline_it_is_for():
    kinds = [(module, kind) for module in modules_of(known) for kind in classes_in(module, TrainBase)]
    own = [kind for module, kind in kinds if kind.__module__ == module.__name__]
    without = [f"{kind.__module__}.{kind.__name__}" for kind in own if "pipeline_class" not in vars(kind)]
    assert not without, f"{without} have no pipeline_class, so the trainer does not find them"
    assert {kind.pipeline_class: kind for kind in own} == TRAINABLE and len(own) == len(TRAINABLE)


def test_the_pages_name_what_can_be_trained():
    assert trainable() in PAGE.read_text(encoding="utf-8"), (
        "docs/pipelines.md lists other trainable pipelines than training/bases/known has; write it again: make pages"
    )
