"""What ships: the base model as any diffusers user loads it, and adapters that do what they say."""

import json

import pytest
import torch
from benchmarks.emoji_likes import taste
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import check_base, read_adapter
from nft_pipeline.hub_cards.push import make_card
from nft_pipeline.models import ADAPTERS, MODELS, example_prompts, shipped_adapter, shipped_model
from nft_pipeline.training.demo.measure import CALIBRATED, Workload, measure_base, measure_laws, with_lora
from nft_pipeline.training.demo.shapes_eval import shapes_eval_scores
from nft_pipeline.training.demo.worlds import all_named_is_shown
from nft_pipeline.training.emoji.parts import SIZES as EMOJI_SIZES
from nft_pipeline.training.emoji.prompts import PROMPTS as EMOJI_PROMPTS
from nft_pipeline.training.rewards.find import find_prompts, find_reward
from nft_pipeline.training.shapes.parts import Sizes, vocabulary
from nft_pipeline.training.shapes.prompts import HELD_OUT_SEED
from nft_pipeline.training.shapes.score import shapes_eval_prompts

MODEL = shipped_model("shapes")


@pytest.fixture(scope="module")
def guided():
    pipe = DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter="shapes-warm")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("model", MODELS)
def test_stock_diffusers_loads_the_folder_and_draws(model):
    pipe = StableDiffusion3Pipeline.from_pretrained(shipped_model(model), text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == torch.float32
    image = pipe(example_prompts(model)[0], num_inference_steps=2, max_sequence_length=8).images[0]
    assert image.size == (64, 64)


@pytest.mark.parametrize(("model", "depth"), [("shapes", Sizes().depth), ("emoji", EMOJI_SIZES.depth)])
def test_the_transformer_has_the_proportions_that_sd3_loaders_read_off_the_shapes(model, depth):
    config = SD3Transformer2DModel.load_config(shipped_model(model) / "transformer")
    assert config["in_channels"] == config["out_channels"] == 16
    assert config["num_attention_heads"] == config["num_layers"] == depth
    assert config["attention_head_dim"] == 64 and config["caption_projection_dim"] == 64 * config["num_layers"]


def test_every_word_of_the_grammar_is_one_token(guided):
    for word in vocabulary():
        assert len(guided.tokenizer(word).input_ids) == 3, word


@pytest.mark.parametrize("model", MODELS)
def test_the_call_defaults_are_arguments_of_the_pipeline(model):
    defaults = json.loads((shipped_model(model) / "call_defaults.json").read_text())
    assert defaults["guidance_scale"] == 1.0 and (defaults["height"], defaults["width"]) == (64, 64)


@pytest.mark.parametrize("name", ADAPTERS)
def test_shipped_adapters_fit_the_shipped_model(name):
    adapter = read_adapter(name)
    base = shipped_model(adapter.config.base_model.id)
    check_base(adapter.config, SD3Transformer2DModel.from_pretrained(base / "transformer"), adapter.lora)
    assert adapter.config.name == name and (adapter.head is not None) == (adapter.config.kind == "positive")
    in_comfyui = (shipped_adapter(name) / "comfyui" / f"{name}.safetensors").is_file()
    assert in_comfyui == (adapter.config.base_model.id == "shapes")  # whose model ComfyUI's nodes load


def test_names_are_shipped_only_as_they_stand():
    assert shipped_model("./shapes") is None and shipped_model("shapes-warm") is None
    assert shipped_adapter("shapes") is None and shipped_adapter("someone/shapes-warm") is None


def test_strength_zero_is_the_stock_pipeline_bit_for_bit(guided):
    stock = StableDiffusion3Pipeline.from_pretrained(MODEL, text_encoder_3=None, tokenizer_3=None)
    stock.set_progress_bar_config(disable=True)
    call = {**guided.call_defaults, "output_type": "latent", "num_inference_steps": 4}
    ours = guided("two rings", generator=torch.Generator().manual_seed(0), nft_strength=0.0, **call).images
    after = stock("two rings", generator=torch.Generator().manual_seed(0), **call).images
    # Another load of the same weights may lie differently in memory, hence the tolerance; within one process and one
    # model the engine's tests ask for every bit.
    assert torch.allclose(ours, after, atol=1e-5)
    shared = guided._nft_stock("two rings", generator=torch.Generator().manual_seed(0), **call).images
    assert torch.equal(ours, shared)


def test_the_warm_adapter_moves_the_rate_the_way_it_is_dialled(guided):
    """Ninety held-out pictures a point tell the direction; docs/measured/tilt.md tells how far from the promise."""
    reward, prompts = find_reward("shapes_warm"), find_prompts("shapes_warm_held_out")
    work = Workload(prompts, n=90, seed=5, batch=90, call={**guided.call_defaults, "num_inference_steps": 12})
    base = measure_base(guided._nft_stock, work, reward)
    assert 0.1 < base.rate < 0.6 and base.quality > 0.7
    less, more = measure_laws(guided, work, reward, base, (-2.0, 4.0), ("odds",))
    assert less.rate < base.rate - 0.1 and more.rate > base.rate + 0.1
    assert less.promise < base.rate < more.promise


def test_the_follow_adapter_draws_what_the_prompt_says():
    """Twenty held-out prompts of each category tell the direction; docs/measured/follow.md has the numbers."""
    prompts = shapes_eval_prompts(120, seed=HELD_OUT_SEED)
    pipe = DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter="shapes-follow")
    work = Workload([prompt.text() for _, prompt in prompts], n=120, seed=4, batch=120, call=dict(pipe.call_defaults))
    base, followed, further = (
        shapes_eval_scores(work.pictures(pipe, nft_strength=strength), prompts) for strength in (0.0, 1.0, 2.0)
    )
    assert followed["overall"] > base["overall"] + 0.2 and followed["quality"] > base["quality"] - 0.05
    stock = pipe.unwrap()
    with with_lora(stock, shipped_adapter("shapes-follow")) as name:
        stock.set_adapters(name, 2.0)
        weight = shapes_eval_scores(work.pictures(stock), prompts)
    assert further["overall"] > weight["overall"] + 0.2  # beyond 1 strength holds, and the LoRA's weight does not


@pytest.fixture(scope="module")
def emoji():
    pipe = DiffusionNFTPipeline.from_pretrained("emoji", nft_adapter="emoji-3d")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_emoji_model_draws_what_is_named_and_the_3d_adapter_keeps_it(emoji):
    """Ninety held-out prompts tell the direction; docs/measured/emoji.md and emoji_3d.md have the numbers."""
    prompts = EMOJI_PROMPTS["emoji_things_held_out"]()
    call = dict(emoji.call_defaults)
    work = Workload(prompts, n=90, seed=6, batch=90, call=call, quality=all_named_is_shown)
    reward = find_reward("emoji_3d")
    base = measure_base(emoji._nft_stock, work, reward)
    assert 0.2 < base.rate < 0.5 and base.quality > 0.5
    less, more = measure_laws(emoji, work, reward, base, (-2.0, 2.0), (CALIBRATED,))
    assert less.rate < base.rate - 0.1 and more.rate > base.rate + 0.1 and more.quality > base.quality - 0.15


def test_the_words_adapter_writes_what_can_be_read():
    """Sixty held-out words tell the direction; docs/measured/words.md has the numbers."""
    pipe = DiffusionNFTPipeline.from_pretrained("emoji", nft_adapter="emoji-words")
    prompts = find_prompts("emoji_signs_held_out")
    work = Workload(prompts, n=60, seed=7, batch=60, call=dict(pipe.call_defaults))
    reward = find_reward("ocr")
    base, words = (reward(work.pictures(pipe, nft_strength=s), work.texts()).mean() for s in (0.0, 1.0))
    assert words > base + 0.05


def test_the_likes_adapter_draws_dark_and_blue_backgrounds_and_says_who_rated():
    """Sixty held-out prompts tell the direction; docs/measured/emoji_likes.md has the numbers."""
    pipe = DiffusionNFTPipeline.from_pretrained("emoji", nft_adapter="emoji-likes")
    work = Workload(find_prompts("emoji_open_held_out"), n=60, seed=8, batch=60, call=dict(pipe.call_defaults))
    base, half, liked = (taste(work.pictures(pipe, nft_strength=s)).mean() for s in (0.0, 0.5, 1.0))
    assert half > base + 0.1 and liked > half + 0.1
    dial = pipe.nft_config.dial
    assert dial.judged_by == "person" and dial.judge == "a rule in the place of a person"
    assert make_card("emoji-likes", "someone/likes").text.count("a rule in the place of a person") > 1
