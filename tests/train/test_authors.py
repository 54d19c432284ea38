"""`authors_trainer`: a run against the authors' loop written down, their solver, and the table of their settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from helpers.authors_loop import TARGETS, Given, dpm2, loop
from helpers.tiny import tiny_pipe
from helpers.tiny_run import ONLINE, config, prompts, random_pool, save_tiny, tiny_base
from helpers.zoo import CASES
from helpers.zoo_case import WIDTH, WORDS, rows
from nft_pipeline.training import authors
from nft_pipeline.training.bases.registry import train_base
from nft_pipeline.training.bases.second_order import sampler_levels, second_order
from nft_pipeline.training.errors import ConfigError, TrainingError
from nft_pipeline.training.learn.batch import draw_in_turn
from nft_pipeline.training.learn.learner import Learner
from nft_pipeline.training.learn.online import round_prompts
from nft_pipeline.training.run.trainer import train
from nft_pipeline.training.settings.config import TrainConfig

AUTHORS_KEYS = [
    "resolution",
    "seed",
    "num_epochs",
    "beta",
    "decay_type",
    "reward_fn",
    "sample.num_steps",
    "sample.guidance_scale",
    "sample.solver",
    "sample.num_image_per_prompt",
    "train.batch_size",
    "train.learning_rate",
    "train.adam_beta1",
    "train.adam_beta2",
    "train.adam_weight_decay",
    "train.adam_epsilon",
    "train.max_grad_norm",
    "train.adv_clip_max",
    "train.adv_mode",
    "train.beta",
    "train.ema",
    "train.timestep_fraction",
    "train.gradient_accumulation_steps",
    "train.num_inner_epochs",
    "mixed_precision",
]
PICTURES, STEPS, ROUND_STEPS = 16, 5, 2
AUTHORS = {
    **ONLINE,
    "eta0": None,
    "objective": "paper",
    "authors_trainer": True,
    "reward": "",
    "rewards": {"helpers.tiny_run:upper": 1.0, "helpers.tiny_run:left": 0.5},
    "old": "ramp",
    "rounds": 10,
    "round_prompts": 4,  # of three texts, so that one comes twice
    "group_size": PICTURES // 4,
    "round_steps": ROUND_STEPS,
    "pool_steps": STEPS,
    "rank": 4,
    "lora_targets": TARGETS,
    "batch": PICTURES * int(STEPS * 0.99) // ROUND_STEPS,
    "lr": 3e-4,
    "weight_decay": 1e-4,
    "tilt": 2.0,
    "sweep_size": 0,
    "calibration_pictures": 0,
}


def brightness(images: np.ndarray) -> np.ndarray:
    return np.round(500 * images.astype(np.float64).reshape(len(images), -1).mean(1) / 255) / 500


def given_to_both(settings: TrainConfig, start: list[torch.Tensor]) -> Given:
    """The random numbers of a run with these settings, as its seeds give them."""
    base = tiny_base(height=8, width=8)
    eps = torch.Generator().manual_seed(settings.seed)

    def noise_of(epoch: int) -> torch.Tensor:
        seed = settings.seed * 1_000_003 + 500_009 * (epoch + 1)
        return torch.randn(base.latent_shape(PICTURES), generator=torch.Generator().manual_seed(seed))

    def orders_of(epoch: int, pictures: int, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
        order = torch.Generator().manual_seed(settings.seed * 1_000_003 + 700_001 * (epoch + 1))
        picture = torch.randperm(pictures, generator=order)
        return picture, torch.stack([torch.randperm(levels, generator=order) for _ in range(pictures)])

    def eps_of(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn((shape[0] * shape[1], *shape[2:]), generator=eps).view(shape)

    return Given(
        texts=prompts(),
        rewards={lambda images: brightness(images[:, :4]): 1.0, lambda images: brightness(images[:, :, :4]): 0.5},
        prompts_of=lambda epoch: round_prompts(3, settings, epoch).tolist(),
        noise_of=noise_of,
        orders_of=orders_of,
        eps=eps_of,
        start=start,
        rank=settings.rank,
        steps=STEPS,
    )


def test_twenty_steps_are_those_of_the_authors_loop(tmp_path, monkeypatch):
    settings = TrainConfig.from_mapping({**AUTHORS, "base_model": save_tiny(tmp_path / "model")})
    losses, theta, old, average = [], [], [], []
    step = Learner.step

    def watched(learner, pool):
        old.append([weight.detach().clone() for weight in learner.roles.old_parameters])
        losses.append(step(learner, pool)["policy"])
        theta.append([weight.detach().clone() for weight in learner.parameters])
        average.append([weight.clone() for weight in learner.average])
        return {"policy": losses[-1]}

    monkeypatch.setattr(Learner, "step", watched)
    result = train(settings, tmp_path / "run", say=lambda line: None, device="cpu")

    theirs = list(loop(tiny_pipe(), given_to_both(settings, old[0])))
    first = torch.cat([weight.flatten() for weight in old[0][::2]])
    assert float(first.std()) == pytest.approx(
        1 / settings.rank, rel=0.1
    )  # theirs begin as A ~ N(0, 1 / rank^2), B = 0
    assert not any(weight.any() for weight in old[0][1::2])
    assert len(theirs) == len(losses) == settings.total_steps == 20
    torch.testing.assert_close(losses, [one.loss for one in theirs], rtol=1e-5, atol=0)
    for ours, name in ((theta, "theta"), (old, "old"), (average, "average")):
        for mine, one in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, getattr(one, name), rtol=0, atol=1e-5)
    moved = max(float((a - b).abs().max()) for a, b in zip(theta[-1], theta[0], strict=True))
    assert moved > 1e-3  # a hundred times what they may differ by
    exported = [result.adapter.lora[key] for key in sorted(result.adapter.lora) if ".to_q." in key]
    names = [name for name, _ in tiny_pipe().transformer.named_modules() if name.endswith("attn.to_q")]
    assert len(exported) == 2 * len(names)
    norms = sorted(float(weight.norm()) for weight in exported)
    whole = {round(float((2 if i % 2 else 1) * weight.norm()), 5) for i, weight in enumerate(theirs[-1].average)}
    assert all(any(abs(norm - one) < 1e-4 for one in whole) for norm in norms)  # lora_alpha is in B


def test_the_solver_is_theirs_and_the_pipeline_has_its_own_again():
    base = tiny_base(num_inference_steps=6, height=8, width=8)
    conditions, noise = base.encode_prompts(["a cat", "a dog"]), torch.randn(base.latent_shape(2))
    stock, scheduler = base.sample_batch(conditions, noise), base.pipe.scheduler
    with second_order(base):
        ours = base.sample_batch(conditions, noise)
    assert base.pipe.scheduler is scheduler and torch.equal(base.sample_batch(conditions, noise), stock)
    with torch.no_grad():
        theirs = dpm2(scheduler, 6, noise, lambda x, t: base.predict(x, t / 1000, conditions))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    assert float((ours - stock).abs().max()) > 1e-3


def test_levels_are_those_of_the_sampler_and_cost_no_forward():
    base = tiny_base(num_inference_steps=6, height=8, width=8)
    one, ran = base.encode_prompts(["a cat"]), []
    handle = base.denoiser.register_forward_hook(lambda *args: ran.append(1))
    base.release()
    levels = sampler_levels(base, one)
    handle.remove()
    assert not ran and len(levels) == 6 and levels[0] == 1 and bool((levels.diff() < 0).all())
    base.sample_batch(one, torch.randn(base.latent_shape(1)))
    assert torch.equal(levels, base.pipe.scheduler.sigmas[:-1])
    guided = tiny_base(num_inference_steps=6, height=8, width=8, guidance_scale=4.0)
    assert torch.equal(levels, sampler_levels(guided, one))


def test_flux_is_sampled_at_the_levels_that_its_pipeline_gives():
    call = {"num_inference_steps": 3, "guidance_scale": 3.5, "height": 8, "width": 8}
    base = train_base(CASES["FluxPipeline"].pipe(), call)
    one = {"text": rows([0], WORDS, WIDTH, seed=2), "pooled": rows([0], WIDTH, seed=3)}
    levels = sampler_levels(base, one)
    with second_order(base):
        latents = base.sample_batch(one, torch.randn(base.latent_shape(1)))
    assert bool(latents.isfinite().all()) and len(levels) == 3
    base.sample_batch(one, torch.randn(base.latent_shape(1)))
    assert torch.equal(levels, base.pipe.scheduler.sigmas[:-1])


def test_a_sampler_of_another_kind_is_refused():
    base = tiny_base()
    base.pipe.scheduler = DDIMScheduler()
    with pytest.raises(TrainingError, match="Set authors_trainer: false; objective: paper"):
        sampler_levels(base, base.encode_prompts(["a cat"]))


def test_a_round_is_gone_through_once_each_picture_at_levels_of_its_own():
    base = tiny_base()
    pool, levels = random_pool(base, n=6), torch.tensor([1.0, 0.9, 0.6, 0.3, 0.1])  # four of five are taken
    noise = torch.Generator().manual_seed(0)
    turns = [draw_in_turn(base, pool, 8, levels, turn, 3, noise) for turn in range(4)]  # three are a whole pass
    pairs = [
        (row, t) for batch in turns[:3] for row, t in zip(batch.rows.tolist(), batch.states.t.tolist(), strict=True)
    ]
    assert len(set(pairs)) == 24 and sorted(row for row, _ in pairs) == [row for row in range(6) for _ in range(4)]
    left_out = [set(levels.tolist()) - {t for row, t in pairs if row == number} for number in range(6)]
    assert all(len(one) == 1 for one in left_out) and len(set().union(*left_out)) > 1
    assert turns[3].rows.tolist() != turns[0].rows.tolist()  # another pass has another order
    again = draw_in_turn(base, pool, 8, levels, 1, 3, noise)
    assert torch.equal(again.rows, turns[1].rows) and torch.equal(again.states.t, turns[1].states.t)
    assert turns[0].table is pool.conditions  # the embeddings of 10368 samples would not fit into memory
    picked = turns[0].take(torch.tensor([3, 1])).to(torch.device("cpu"))
    for name, value in picked.conditions.items():
        assert torch.equal(value, pool.conditions[name][pool.prompt[turns[0].rows[[3, 1]]]])


def test_the_scale_of_a_lora_is_in_the_adapter_and_comes_back_out_of_it():
    base = tiny_base()
    learner = Learner(base, base.encode_prompts(prompts()), config(**{**AUTHORS, "base_model": "tiny"}))
    with torch.no_grad():
        for parameter in learner.roles.parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    before = [parameter.clone() for parameter in learner.roles.parameters]
    norm, lora = learner.roles.norm(), learner.roles.lora()
    a, b = (lora[f"transformer.transformer_blocks.0.attn.to_q.lora_{side}.weight"] for side in "AB")
    module = base.denoiser.get_submodule("transformer_blocks.0.attn.to_q")
    x = torch.randn(3, a.shape[1])
    learner.roles.use("theta")
    on = module(x)
    learner.roles.use("base")
    torch.testing.assert_close(on - module(x), x @ a.T @ b.T, rtol=1e-4, atol=1e-4)
    learner.roles.load(lora, "itself")
    for parameter, was in zip(learner.roles.parameters, before, strict=True):
        torch.testing.assert_close(parameter.detach(), was)
    squares = sum(
        float((lora[key.replace("lora_A", "lora_B")] @ lora[key]).square().sum()) for key in lora if "lora_A" in key
    )
    assert norm == pytest.approx(squares**0.5, rel=1e-4)


def test_the_map_of_their_config_names_our_settings_with_the_values_of_the_preset():
    preset, keys = TrainConfig.from_yaml("paper"), set()
    for one in authors.MAP:
        assert one.key not in keys and (one.setting or one.note), one
        keys.add(one.key)
        if one.setting:
            assert getattr(preset, one.setting) == one.ours or one.ours is None, one
    assert preset.batch == preset.round_prompts * preset.group_size * int(preset.pool_steps * authors.LEVELS_SHARE)
    assert set(AUTHORS_KEYS) <= {key.split(" (")[0] for one in authors.MAP for key in one.key.split(", ")}


@pytest.mark.parametrize("extra", [{"adaptive_noise": True}, {"noise_spread": 1.0}, {"noise_within": [0.0, 0.5]}])
def test_their_levels_leave_no_room_for_other_ones(extra):
    with pytest.raises(ConfigError, match="leave out adaptive_noise, noise_spread and noise_within"):
        config(**{**AUTHORS, **extra})
