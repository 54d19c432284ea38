"""Baking: the dial of a positive adapter in one LoRA, whose plain weight is the strength."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.tiny_run import config, prompts, random_pool, save_tiny, tiny_base
from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import Adapter, AdapterError, read_adapter, write_adapter
from nft_pipeline.cli import main
from nft_pipeline.guidance import combine, law_scale
from nft_pipeline.hub_cards.card import render_card
from nft_pipeline.hub_cards.licence import Licence
from nft_pipeline.hub_cards.report import RunReport
from nft_pipeline.training.errors import TrainingError
from nft_pipeline.training.learn.bake import Baker, check_bakeable
from nft_pipeline.training.rewards.contract import RewardError
from nft_pipeline.training.run.bake import bake, bake_settings
from nft_pipeline.training.run.trainer import train

CEILING = 4.0
PROMPTS = "helpers.tiny_run:prompts"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a positive adapter of the tiny model, whose LoRA and head do something."""
    folder = tmp_path_factory.mktemp("trained")
    settings = config(base_model=save_tiny(folder / "model"), batch=16)
    train(settings, folder / "run", say=lambda line: None, device="cpu")
    adapter, g = read_adapter(folder / "run" / "adapter"), torch.Generator().manual_seed(3)
    assert adapter.head is not None
    lora = {key: tensor + 0.1 * torch.randn(tensor.shape, generator=g) for key, tensor in adapter.lora.items()}
    with torch.no_grad():  # alpha from .1 to .9, or the law has nothing to say
        for layer in (adapter.head.attention_out, adapter.head.evidence_out):
            layer.weight.copy_(0.3 * torch.randn(layer.weight.shape, generator=g))
    return write_adapter(folder / "adapter", dataclasses.replace(adapter, lora=lora))


@pytest.fixture(scope="module")
def baked(trained: Path) -> Path:
    """The folder that the command writes."""
    out = trained.parent / "out"
    options = ["--steps", "3", "--rank", "3", "--prompts", PROMPTS, "--out", str(out)]
    assert main(["export", str(trained), "--baked", *options]) == 0
    return out / "tiny-baked"


def baker_of(trained: Path, **settings: Any) -> Baker:
    base, adapter = tiny_base(), read_adapter(trained)
    return Baker(base, adapter, random_pool(base, 24), config(batch=32, lr=3e-3, **settings), CEILING)


def test_the_student_comes_nearer_to_guidance_in_two_passes(trained: Path) -> None:
    baker = baker_of(trained, steps=80)
    state = baker.draw(256)
    target = baker.teacher(*state[:3], CEILING * state[3])

    def distance() -> float:
        with torch.no_grad():
            return float((baker.student(*state) - target).square().mean())

    before = distance()
    for _ in range(80):
        baker.step()
    baker.use_average()
    assert distance() < 0.6 * before


def test_the_teacher_is_the_odds_law_of_the_adapter(trained: Path) -> None:
    baker = baker_of(trained)
    x_t, t, conditions, weight = baker.draw(8)
    with torch.no_grad():
        v_old, alpha = baker._old_and_alpha(x_t, t, conditions)
        baker.roles.use("old")
        v_plus = baker.base.predict(x_t, t, conditions)
    assert float((v_plus - v_old).abs().max()) > 1e-3 and float(alpha.std()) > 1e-3
    expected = combine(v_old, v_plus, law_scale(alpha, CEILING * weight, "odds"))
    torch.testing.assert_close(baker.teacher(x_t, t, conditions, CEILING * weight), expected)


def test_at_its_start_it_is_the_adapters_lora_at_that_weight_whatever_its_rank(trained: Path) -> None:
    low, high = baker_of(trained), baker_of(trained, rank=5)
    state = low.draw(8)
    with torch.no_grad():
        base = low.student(*state[:3], torch.zeros(8))
        torch.testing.assert_close(base, low.teacher(*state[:3], torch.zeros(8)))
        torch.testing.assert_close(low.student(*state), high.student(*state))
        low.roles.use("old")
        full = low.base.predict(*state[:3])
    torch.testing.assert_close(low.student(*state[:3], torch.ones(8)), full)


def test_states_are_of_pictures_that_the_tilted_model_draws(trained: Path) -> None:
    """Beyond weight 0 liked pictures come more often, by 1 + rho alpha; below it less often."""
    baker = baker_of(trained)
    baker.liked = torch.tensor([0.0, 1.0]).repeat(12)
    baker.pool.conditions["text"] = torch.arange(3.0)[:, None]  # tells prompts apart, which is not looked at here
    counts = {-1: [0, 0], 1: [0, 0]}
    baker.pool = dataclasses.replace(baker.pool, prompt=torch.arange(24) % 2)
    for _ in range(20):
        _, _, conditions, weight = baker.draw(200)
        liked = conditions["text"][:, 0]
        for sign in counts:
            some = liked[weight * sign > 0.5]
            counts[sign][0] += len(some)
            counts[sign][1] += int(some.sum())
    weights = torch.linspace(-1, 1, 10_001)
    for sign, (n, k) in counts.items():
        odds = torch.exp(CEILING * weights[weights * sign > 0.5])
        expected = float((odds / (1 + odds)).mean())
        assert abs(k / n - expected) < 4 * (expected * (1 - expected) / n) ** 0.5


def test_removing_it_leaves_the_base_model(trained: Path) -> None:
    base = tiny_base()
    before = {key: value.clone() for key, value in base.denoiser.state_dict().items()}
    baker = Baker(base, read_adapter(trained), random_pool(base), config(batch=4), CEILING)
    baker.step()
    baker.remove()
    after = base.denoiser.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


def test_what_is_written_says_what_weight_one_stands_for(trained: Path, baked: Path) -> None:
    source, adapter = read_adapter(trained), read_adapter(baked)
    made = adapter.config
    assert (made.kind, made.name, made.rank, adapter.head) == ("policy", "tiny-baked", 3, None)
    assert made.tilt == 2 * source.config.tilt and made.strength * made.tilt == source.config.tilt
    assert made.training["objective"] == "baked" and made.training["baked_from"]["name"] == source.config.name
    assert made.training["settings"]["prompts"] == "helpers.tiny_run:prompts"
    assert made.base_model == source.config.base_model and made.reward == source.config.reward
    assert (baked / "comfyui" / "tiny-baked.safetensors").is_file()


def test_lora_weight_in_stock_diffusers_is_strength_in_one_pass(trained: Path, baked: Path) -> None:
    model = trained.parent / "model"
    call: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 1.0, "height": 8, "width": 8}
    call |= {"max_sequence_length": 4, "output_type": "latent"}
    stock = DiffusionNFTPipeline.from_pretrained(model).unwrap()
    stock.load_lora_weights(baked, weight_name="pytorch_lora_weights.safetensors", adapter_name="dial")
    guided = DiffusionNFTPipeline.from_pretrained(model, nft_adapter=baked)
    for weight in (-0.5, 0.5):
        stock.set_adapters("dial", weight)
        plain = stock(prompts()[0], generator=torch.Generator().manual_seed(0), **call).images
        ours = guided(
            prompts()[0],
            generator=torch.Generator().manual_seed(0),
            nft_strength=weight,
            nft_mode="single",
            **call,
        ).images
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_its_card_says_that_weight_is_the_dial(baked: Path) -> None:
    made = read_adapter(baked).config
    made = dataclasses.replace(made, base_model=dataclasses.replace(made.base_model, id="someone/model"))
    text = render_card(made, RunReport(), {}, repo_id="someone/tiny-baked", licence=Licence("apache-2.0")).text
    assert "the dial of tiny was trained into this one LoRA" in text and "| baked from | tiny |" in text
    assert f'pipe.set_adapters("dial", {made.strength:g})' in text and 'nft_mode="single"' in text
    assert "has no dial" not in text


@pytest.mark.parametrize("what", ["policy", "no head", "old", "second denoiser", "rank"])
def test_what_cannot_be_baked_is_refused_by_name(trained: Path, baked: Path, what: str) -> None:
    adapter = read_adapter(trained)
    second = {key.replace("transformer.", "transformer_2.", 1): tensor for key, tensor in adapter.lora.items()}
    refused: dict[str, tuple[Adapter, str]] = {
        "policy": (read_adapter(baked), '"tiny-baked" is a policy adapter'),
        "no head": (dataclasses.replace(adapter, head=None), '"tiny" is a positive adapter without an alpha head'),
        "old": (dataclasses.replace(adapter, old=adapter.lora), '"tiny" has more than one LoRA'),
        "second denoiser": (dataclasses.replace(adapter, lora={**adapter.lora, **second}), "more than one LoRA"),
        "rank": (adapter, 'the rank is 1, and the LoRA of "tiny"'),
    }
    wrong, message = refused[what]
    with pytest.raises(TrainingError, match=message):
        check_bakeable(wrong, 1 if what == "rank" else None)


def test_prompts_are_asked_for_where_none_are_known(trained: Path) -> None:
    adapter = read_adapter(trained)
    unknown = dataclasses.replace(adapter, config=dataclasses.replace(adapter.config, training={}))
    with pytest.raises(TrainingError, match=r"does not say on which prompts.*Give --prompts"):
        bake_settings(unknown, None, 1, None, 0)
    assert bake_settings(unknown, "mine.txt", 1, None, 0).prompts == "mine.txt"
    with pytest.raises(RewardError, match=r"tiny_run:prompts is code that the adapter names.*Give --prompts"):
        bake(adapter, trained.parent / "never")
    gone = {**adapter.config.training, "settings": {**adapter.config.training["settings"], "prompts": "gone.txt"}}
    elsewhere = dataclasses.replace(adapter, config=dataclasses.replace(adapter.config, training=gone))
    with pytest.raises(RewardError, match=r"that are not here.*Give --prompts"):
        bake(elsewhere, trained.parent / "never")


def test_a_stopped_or_refused_baking_leaves_nothing_behind(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(AdapterError, match="is no adapter"):  # before anything is trained
        bake(read_adapter(trained), tmp_path / "other", steps=1)

    def interrupted(self: Baker) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(Baker, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bake(read_adapter(trained), tmp_path / "new", steps=1, prompts=PROMPTS)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize("options", [["--steps", "3"], ["--prompts", "a.txt"], ["--rank", "4"], ["--seed", "1"]])
def test_options_of_baking_belong_to_baking(
    trained: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained), "peft", *options]) == 2
    assert f"{options[0]} goes with --baked only" in capsys.readouterr().err


def test_a_form_or_baked_has_to_be_named(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(trained)]) == 2
    assert "FORM --baked is required" in capsys.readouterr().err
    assert main(["export", str(trained), "--baked", "--strength", "2"]) == 2
    assert "are for the form merged" in capsys.readouterr().err
