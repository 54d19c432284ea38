"""One optimiser step: how many forwards it costs, which role each is of, and that it goes where it should."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from helpers.tiny_run import ONLINE, config, prompts, random_pool, tiny_base
from helpers.zoo import CASES
from helpers.zoo_case import WIDTH, WORDS, rows
from nft_pipeline.adapter import BaseModel, fingerprint
from nft_pipeline.training.bases.noising import NoiseLaw
from nft_pipeline.training.bases.registry import train_base
from nft_pipeline.training.data.pool import Pool
from nft_pipeline.training.data.scorers import RunRewards
from nft_pipeline.training.devices.memory import memory_advice
from nft_pipeline.training.errors import TrainingError
from nft_pipeline.training.learn.export import Shift, adapter_config, nominal_tilt, tilt_words
from nft_pipeline.training.learn.learner import Learner
from nft_pipeline.training.learn.objective import Objective, States
from nft_pipeline.training.learn.old_model import Tilt, average_decay
from nft_pipeline.training.learn.online import Prompts, sample_round
from nft_pipeline.training.learn.roles import OLD, THETA
from nft_pipeline.training.settings.config import TrainConfig


def learner_of(**settings):
    base = tiny_base()
    pool = random_pool(base)
    learner = Learner(base, pool.conditions, config(**settings))
    with torch.no_grad():  # or v_plus equals v_old and nothing is tested
        for parameter in [*learner.roles.parameters, *learner.roles.old_parameters]:
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return base, learner, pool


def forwards_of(base, learner, pool):
    """(had a gradient, which LoRA was on) of every forward of a step."""
    seen = []
    layer = base.denoiser.get_submodule("transformer_blocks.0.attn.to_q")
    hook = base.denoiser.register_forward_hook(
        lambda module, args, output: seen.append((output[0].requires_grad, tuple(layer.active_adapters)))
    )
    learner.step(pool)
    hook.remove()
    return seen


ON = dict(ONLINE)
BASE, OF_OLD, GRAD = (False, ()), (False, (OLD,)), (True, (THETA,))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"objective": "positive"},
            [(False, (THETA,)), GRAD],
        ),  # the head's: the LoRA with one scale per row, half 0
        ({"objective": "policy", "baseline": "half"}, [BASE, GRAD]),
        ({"objective": "policy", "baseline": "alpha"}, [BASE, GRAD]),
        ({"objective": "policy", "eta0": 3.0}, [BASE, GRAD]),
        ({"objective": "paper"}, [BASE, GRAD]),
        ({**ON, "eta0": None}, [OF_OLD, GRAD]),
        ({**ON, "eta0": None, "objective": "paper"}, [OF_OLD, GRAD]),
        ({**ON, "eta0": None, "objective": "paper", "authors_trainer": True}, [OF_OLD, BASE, GRAD]),
        ({**ON, "step_law": "odds"}, [OF_OLD, GRAD]),
        (ON, [OF_OLD, BASE, GRAD]),
    ],
    ids=[
        "positive",
        "half",
        "alpha",
        "offline anchor",
        "paper",
        "online",
        "online paper",
        "authors trainer",
        "online odds law",
        "online anchor",
    ],
)
def test_a_step_costs_the_forwards_it_says(settings, expected):
    base, learner, pool = learner_of(**settings)
    seen = forwards_of(base, learner, pool)
    assert seen == expected
    forwards, backwards = learner.objective.passes(online="rounds" in settings)
    assert (len(seen), sum(gradient for gradient, _ in seen)) == (forwards, backwards)


def test_no_encoder_vae_or_scheduler_is_called_in_the_optimiser_loop():
    base, learner, pool = learner_of(objective="policy")

    def forbidden(*args, **kwargs):
        raise AssertionError("called inside the optimiser loop")

    pipe = base.pipe
    hooks = [part.register_forward_pre_hook(forbidden) for part in (pipe.text_encoder, pipe.text_encoder_2, pipe.vae)]
    pipe.vae.encode = pipe.vae.decode = pipe.encode_prompt = forbidden
    for _ in range(3):
        learner.step(pool)
    base.release(*base.encoders, "vae")
    learner.step(pool)
    assert learner.step_number == 4 and pipe.vae is None and pipe.text_encoder is None and len(hooks) == 3


@pytest.mark.parametrize("kind", ["positive", "policy", "paper"])
@pytest.mark.parametrize("micro_batch", [3, 8])
def test_small_batches_at_a_time_give_the_same_gradients(kind, micro_batch):
    found = []
    for size in (0, micro_batch):
        _, learner, pool = learner_of(objective=kind, micro_batch=size)
        losses = learner.step(pool)
        found.append((losses, [parameter.detach().clone() for parameter in learner.parameters]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for one, two in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=3e-4)


def test_disliked_pictures_lend_v_plus_their_noisy_states_only():
    _, learner, pool = learner_of(objective="positive", batch=64)
    prompt = torch.arange(len(pool)) % 2
    pool = replace(pool, prompt=prompt, r=(torch.arange(len(pool)) % 3 > 0).float())
    batch = learner._draw_plus(pool)
    liked = pool.r[batch.rows] > 0
    assert bool((~liked).any()) and len(batch.rows) <= 64
    assert batch.states.t[~liked].min() > batch.states.t[liked].min()  # at low noise they are no liked picture's
    assert float(batch.weight.min()) > 0
    graded = learner._draw_plus(replace(pool, r=pool.r / 2))
    assert (pool.r[graded.rows] > 0).all() and len(graded.rows) == 64 and (graded.weight == 1).all()


def test_gradient_checkpointing_changes_nothing_but_the_memory():
    found = []
    for flag in (False, True):
        _, learner, pool = learner_of(**{**ON, "gradient_checkpointing": flag})
        learner.step(pool)
        found.append([parameter.detach().clone() for parameter in learner.parameters])
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(*found, strict=True))


def test_old_may_follow_at_a_number():
    _, learner, _ = learner_of(**{**ON, "old": 0.9})
    with torch.no_grad():
        for old, theta in zip(learner.roles.old_parameters, learner.roles.parameters, strict=True):
            old.zero_()
            theta.fill_(1.0)
    learner.finish_round()
    for old in learner.roles.old_parameters:
        torch.testing.assert_close(old, torch.full_like(old, 0.1))


def test_refit_reaches_the_loss_from_the_settings():
    objective = Objective.of(config(objective="policy", baseline="half", tilt=2.0, refit=0.5))
    old, y = torch.zeros(1, 4), torch.ones(1, 4)
    states = States(y, y, y, torch.full((1,), 0.5), torch.ones(1))
    # 2 (1 - 1/2) + 1/2 of the way from old to y
    assert objective.loss(torch.full((1, 4), 1.5), states, old=old, baseline=0.5).item() == 0
    assert objective.loss(torch.full((1, 4), 1.0), states, old=old, baseline=0.5).item() == 0.25


def test_a_measured_shift_of_log_odds_is_the_tilt_that_is_stored():
    base, learner, _ = learner_of(**ON)
    identity = BaseModel(id="tiny", revision=None, fingerprint=fingerprint(base.denoiser))
    nominal = adapter_config(learner, identity, 0.5, 8)
    measured = adapter_config(learner, identity, 0.5, 8, shift=Shift(1.7, 0.2, 240))
    unsure = adapter_config(learner, identity, 0.5, 8, shift=Shift(0.3, 0.2, 240))
    assert (measured.tilt, measured.beta) == pytest.approx((1.7, 2 / 1.7))
    assert unsure.tilt == nominal.tilt != measured.tilt
    assert measured.training["nominal_tilt"] == nominal_tilt(learner)
    assert measured.training["measured_shift"] == {"log_odds": 1.7, "error": 0.2, "n": 240}
    assert nominal.training["measured_shift"] is None
    assert "measured 1.7 ± 0.2 in log-odds on 240" in tilt_words(learner, Shift(1.7, 0.2, 240))
    assert "which is not sure" in tilt_words(learner, Shift(0.3, 0.2, 240))


def test_the_odds_law_reads_what_old_has_reached():
    losses = []
    for reached in (0.0, 4.0):  # at eta0 nothing is left to add, and theta begins at old
        _, learner, pool = learner_of(**{**ON, "step_law": "odds"})
        learner.tilt = Tilt(reached, reached)
        losses.append(learner.step(pool)["policy"])
    assert losses[1] < 1e-9 < losses[0]


@pytest.mark.parametrize(("authors_trainer", "groups"), [(False, 6), (True, 3)])
def test_the_authors_trainer_compares_all_pictures_of_a_text(authors_trainer, groups):
    paper = {**ONLINE, "eta0": None, "objective": "paper", "authors_trainer": authors_trainer, "round_prompts": 6}
    base, learner, _ = learner_of(**paper)
    drawn = Prompts(base, prompts(), learner.config).of_round(0)
    _, scored = sample_round(
        base, learner.roles, drawn, None, RunRewards(learner.config, base.device).trained(), learner.config, 0
    )
    assert scored.groups == groups


def test_the_authors_trainer_averages_and_steps_by_their_rules():
    authors = {"objective": "paper", "authors_trainer": True, "weight_decay": 0.0}
    _, learner, pool = learner_of(**{**ONLINE, "eta0": None, **authors})
    assert learner.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    assert learner.optimizer.param_groups[0]["lr"] == learner.config.lr
    start = [average.clone() for average in learner.average]
    learner.step(pool)
    for average, first, now in zip(learner.average, start, learner.parameters, strict=True):
        torch.testing.assert_close(average, first + (1 - 2 / 11) * (now.detach() - first), rtol=1e-5, atol=1e-8)
    assert average_decay(1000, learner.config) == 0.9
    assert learner_of()[1].optimizer.param_groups[0]["betas"] == (0.9, 0.99)


def test_old_follows_theta_and_only_when_told():
    _, learner, pool = learner_of(**{**ON, "old": "copy"})
    before = [parameter.clone() for parameter in learner.roles.old_parameters]
    learner.step(pool)
    assert all(torch.equal(one, two) for one, two in zip(before, learner.roles.old_parameters, strict=True))
    learner.roles.follow(0.75)
    for old, theta, was in zip(learner.roles.old_parameters, learner.roles.parameters, before, strict=True):
        torch.testing.assert_close(old, 0.75 * was + 0.25 * theta, rtol=1e-5, atol=1e-7)
    learner.finish_round()
    pairs = zip(learner.roles.old_parameters, learner.roles.parameters, strict=True)
    assert all(torch.equal(old, theta) for old, theta in pairs)
    assert learner.round_number == 1 and learner.tilt.theta == pytest.approx(4 / (4 + 2) * 2)


def test_the_head_sees_the_lora_at_random_scales_and_off():
    _, learner, pool = learner_of(objective="positive", head_batch=64)
    seen = []
    by_row = learner.roles.theta_by_row
    learner.roles.theta_by_row = lambda scale: seen.append(scale) or by_row(scale)
    told = []
    learner.head.register_forward_pre_hook(lambda module, args: told.append(args[3]))
    learner.step(pool)
    scale = seen[0]
    assert 20 <= (scale == 0).sum() <= 44 and len(scale.unique()) > 20
    assert -1 <= scale.min() < -0.5 and 0.5 < scale.max() <= 1
    assert torch.equal(told[0], scale)
    low = learner.draw(pool, 8, NoiseLaw(1.0))
    tokens = []
    for role in ("base", "theta"):
        learner.roles.use(role)
        tokens.append(learner.output_and_tokens(low)[1])
    with by_row(torch.tensor([0.0, 1.0] * 4)):
        mixed = learner.output_and_tokens(low)[1]
    torch.testing.assert_close(mixed[0::2], tokens[0][0::2])
    torch.testing.assert_close(mixed[1::2], tokens[1][1::2])
    assert not torch.allclose(tokens[0], tokens[1])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("StableDiffusionPipeline", "policy"),
        ("StableDiffusionPipeline", "paper"),
        ("StableDiffusionPipeline, v", "paper"),
        ("StableDiffusionXLPipeline", "policy"),
        ("StableDiffusion3Pipeline", "positive"),
        ("FluxPipeline", "policy"),
        ("FluxPipeline", "positive"),
    ],
)
def test_every_family_learns_a_fixed_batch_by_heart(name, kind):
    """The loss of one batch falls: targets, timesteps and packing fit together."""
    base = train_base(CASES[name].pipe(), {"height": 8, "width": 8, "guidance_scale": 1.0})
    conditions = {"text": rows([0, 1], WORDS, WIDTH, seed=2)}
    if "pooled_prompt_embeds" in base.call_conditions({**conditions, "pooled": conditions["text"]}):
        conditions["pooled"] = rows([0, 1], WIDTH, seed=3)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(base.latent_shape(2), generator=generator)
    pool = Pool.of(latents, torch.arange(2), conditions, torch.tensor([0.9, 0.2]))
    learner = Learner(base, conditions, config(objective=kind, rank=4, steps=12, lr=0.02, weight_decay=0.0))
    losses = []
    for _ in range(12):
        learner.generator.manual_seed(5)
        losses.append(learner.step(pool)["v_plus" if kind == "positive" else "policy"])
    assert losses[-1] < losses[0], losses
    moved = [bool(parameter.abs().max() > 0) for parameter in learner.roles.parameters[1::2]]
    assert sum(moved) >= 0.6 * len(moved)  # the last block's text side leads nowhere
    learner.remove()
    assert not any("lora" in name for name, _ in base.denoiser.named_modules())


@pytest.mark.parametrize("kind", ["positive", "policy", "paper"])
def test_an_adaptive_law_meets_the_gradients_at_the_output_whatever_the_micro_batch(kind):
    met = []
    for micro_batch in (0, 3):
        _, learner, pool = learner_of(objective=kind, micro_batch=micro_batch, adaptive_noise=True, batch=8)
        learner.law.seen[:] = torch.stack([torch.arange(1.0, 13) ** 2, torch.ones(12), 9 * torch.ones(12)])
        before, drawn, gradients = learner.law.seen.clone(), [], []
        draw, objective = learner.draw, learner.objective

        def keep(*arguments, draw=draw, drawn=drawn):
            drawn.append(draw(*arguments))
            return drawn[-1]

        def loss(output, states, *, objective=objective, gradients=gradients, **others):
            here = output.detach().requires_grad_(True)
            gradients.extend(torch.autograd.grad(objective.loss(here, states, **others).sum(), here)[0].flatten(1))
            return objective.loss(output, states, **others)

        learner.draw, learner.objective = (
            keep,
            SimpleNamespace(loss=loss, kind=kind, needs_ref=False, baseline=objective.baseline),
        )
        learner.step(pool)
        at = drawn[-1].bin  # of the LoRA's batch
        expected = torch.zeros(2, 12).index_add_(
            1, at, torch.stack([torch.stack(gradients).square().sum(1), torch.ones(8)])
        )
        met.append(learner.law.seen[:2] - 0.98 * before[:2])
        torch.testing.assert_close(met[-1].float(), expected, rtol=2e-3, atol=1e-5)
        assert not torch.equal(drawn[-1].weight, torch.ones(8))
        _, resumed, _ = learner_of(objective=kind, adaptive_noise=True, batch=8)
        resumed.load_state_dict(learner.state_dict())
        assert torch.equal(resumed.law.seen, learner.law.seen)
    torch.testing.assert_close(*met)


def test_a_loss_that_is_not_finite_stops_by_name():
    _, learner, pool = learner_of(objective="policy")
    with torch.no_grad():
        learner.roles.parameters[-1].fill_(float("nan"))
    with pytest.raises(TrainingError, match="a loss is not finite at step 1"):
        learner.step(pool)


def test_out_of_memory_names_the_keys_to_change():
    for error in (torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("not enough memory: you tried")):
        with pytest.raises(TrainingError) as caught, memory_advice("training", micro_batch=0):
            raise error
        assert all(key in str(caught.value) for key in ("micro_batch", "gradient_checkpointing", "rank"))
    with pytest.raises(RuntimeError, match="something else"), memory_advice("training", micro_batch=0):
        raise RuntimeError("something else")


def test_the_objective_follows_from_where_the_pictures_come_from():
    assert TrainConfig.from_yaml("shapes_warm").kind == "positive"
    foreign = config(reward="", prompts=None, data="pictures")
    assert (foreign.kind, foreign.baseline) == ("policy", "alpha")
    assert config(reward="", prompts=None, data="pictures", made_by_base=True).kind == "positive"
    assert config(**ONLINE).kind == "policy"
