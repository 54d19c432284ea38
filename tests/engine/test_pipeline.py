"""DiffusionNFTPipeline as its users meet it: loading, calling, saving, unwrapping."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from PIL.Image import Image

from helpers.tiny import load_style, random_lora, sample, state_of, tiny_adapter, tiny_pipe
from nft_pipeline import DiffusionNFTPipeline, NFTStats
from nft_pipeline.call.guided_call import GUIDANCE_ARGUMENTS

# Stock diffusers saves a Stable Diffusion 3 without its third text encoder, but loads it only when told so in the call.
NO_T5 = {"text_encoder_3": None, "tokenizer_3": None}


@pytest.fixture
def pipe() -> StableDiffusion3Pipeline:
    return tiny_pipe()


@pytest.fixture
def guided(pipe: StableDiffusion3Pipeline) -> Any:
    return DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))


def test_what_it_is(pipe: StableDiffusion3Pipeline, guided: Any) -> None:
    assert issubclass(type(guided), StableDiffusion3Pipeline) and issubclass(type(guided), DiffusionNFTPipeline)
    assert type(guided).__name__ == "DiffusionNFTStableDiffusion3Pipeline"
    assert type(pipe) is StableDiffusion3Pipeline
    assert type(DiffusionNFTPipeline.from_pipe(pipe)) is type(guided)
    assert all(getattr(guided, name) is part for name, part in pipe.components.items())
    assert guided.components.keys() == pipe.components.keys()
    assert guided.nft_config.name == "tiny" and guided.nft_stats is None
    stock = guided.unwrap()
    assert stock is pipe and type(stock) is StableDiffusion3Pipeline
    assert guided.nft_config is None


def test_help_shows_the_stock_arguments_and_ours(guided: Any) -> None:
    signature = inspect.signature(type(guided).__call__)
    stock = list(inspect.signature(StableDiffusion3Pipeline.__call__).parameters)
    assert list(signature.parameters) == [*stock, *GUIDANCE_ARGUMENTS]
    defaults = {name: p.default for name, p in signature.parameters.items() if name.startswith("nft_")}
    assert defaults == {name: default for name, (default, _) in GUIDANCE_ARGUMENTS.items()}
    text = inspect.getdoc(type(guided).__call__) or ""
    assert all(f"\n    {name} (`" in text for name in GUIDANCE_ARGUMENTS) and "num_inference_steps" in text


def test_the_defaults_shown_are_the_defaults_used(guided: Any) -> None:
    shown = sample(guided, **{name: default for name, (default, _) in GUIDANCE_ARGUMENTS.items()})
    assert torch.equal(sample(guided), shown)
    assert torch.equal(sample(guided, nft_beta=1.0), shown)  # the adapter's own: tilt 2


def test_without_an_adapter_it_is_the_stock_pipeline(pipe: StableDiffusion3Pipeline) -> None:
    bare = DiffusionNFTPipeline.from_pipe(pipe)
    assert torch.equal(sample(bare), sample(pipe))
    assert bare.nft_stats is None and bare.unwrap() is pipe


def test_an_adapter_is_replaced_and_unloaded(pipe: StableDiffusion3Pipeline, guided: Any) -> None:
    first = sample(guided)
    guided.load_nft_adapter(tiny_adapter(pipe.transformer, seed=8))
    second = sample(guided)
    guided.load_nft_adapter(tiny_adapter(pipe.transformer))
    assert not torch.equal(first, second) and torch.equal(first, sample(guided))
    guided.unload_nft_adapter()
    guided.unload_nft_adapter()
    assert torch.equal(sample(guided), sample(pipe))


def test_a_faulty_adapter_leaves_the_present_one(pipe: StableDiffusion3Pipeline, guided: Any) -> None:
    expected = sample(guided)
    with pytest.raises(ValueError, match="another base model"):
        guided.load_nft_adapter(tiny_adapter(tiny_pipe(layers=1).transformer))
    assert torch.equal(sample(guided), expected)


def test_a_users_lora_called_nft_keeps_its_name(pipe: StableDiffusion3Pipeline) -> None:
    load_style(pipe)
    other = tiny_pipe()
    other.load_lora_weights(random_lora(other.transformer, seed=99), adapter_name="nft")
    guided = DiffusionNFTPipeline.from_pipe(other, tiny_adapter(other.transformer))
    assert torch.equal(sample(guided, nft_strength=0), sample(other))
    assert torch.equal(sample(pipe), sample(other))
    guided.unwrap()
    assert other.get_active_adapters() == ["nft"]


def test_calls(guided: Any) -> None:
    pictures = guided("a cat", num_inference_steps=2, max_sequence_length=4, guidance_scale=1.0).images
    assert len(pictures) == 1 and isinstance(pictures[0], Image) and pictures[0].size == (8, 8)
    arguments: dict[str, Any] = {"num_images_per_prompt": 2, "prompt": ["a cat", "a dog"]}
    assert sample(guided, **arguments).shape == (4, 4, 8, 8)
    assert guided.nft_stats.alpha.shape == (3, 4)
    assert sample(guided, output_type="np").shape == (1, 8, 8, 3)
    assert sample(guided, output_type="pt").shape == (1, 3, 8, 8)
    (latents,) = guided(
        "a cat",
        num_inference_steps=3,
        max_sequence_length=4,
        guidance_scale=1.0,
        output_type="latent",
        return_dict=False,
        generator=torch.Generator().manual_seed(0),
    )
    assert torch.equal(latents, sample(guided))
    assert isinstance(guided.nft_stats, NFTStats)


def test_strength_0_gives_the_same_picture(pipe: StableDiffusion3Pipeline, guided: Any) -> None:
    stock, ours = (sample(each, output_type="np", **k) for each, k in ((pipe, {}), (guided, {"nft_strength": 0})))
    assert np.array_equal(stock, ours)


def test_num_images_per_prompt_are_samples_of_their_own(guided: Any) -> None:
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    pair = sample(guided, num_images_per_prompt=2, generator=generators)
    for i in range(2):
        torch.testing.assert_close(sample(guided, seed=i)[0], pair[i], atol=1e-5, rtol=0)


def test_the_callback_gets_the_guided_pipeline_and_may_change_latents(guided: Any) -> None:
    seen = []

    def callback(pipe: Any, step: int, timestep: Any, inputs: dict) -> dict:
        seen.append((pipe, step))
        return {"latents": torch.zeros_like(inputs["latents"])} if step == 2 else inputs

    assert torch.equal(sample(guided, callback_on_step_end=callback), torch.zeros(1, 4, 8, 8))
    assert seen == [(guided, 0), (guided, 1), (guided, 2)]


def test_bfloat16() -> None:
    pipe = tiny_pipe().to(torch.bfloat16)
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer))
    assert guided.nft_adapters["default"].head.queries.dtype == torch.float32
    base, result = sample(pipe), sample(guided)
    assert result.dtype == torch.bfloat16 and result.isfinite().all() and not torch.equal(result, base)
    assert torch.equal(sample(guided, nft_strength=0), base)
    assert pipe.transformer.dtype == torch.bfloat16
    precise = DiffusionNFTPipeline.from_pipe(tiny_pipe(), tiny_adapter(tiny_pipe().transformer))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    sample(precise, latents=noise), sample(guided, latents=noise.bfloat16())
    torch.testing.assert_close(guided.nft_stats.alpha, precise.nft_stats.alpha, atol=0.03, rtol=0)


def assert_same_weights(one: StableDiffusion3Pipeline, other: StableDiffusion3Pipeline) -> None:
    ours, theirs = one.transformer.state_dict(), other.transformer.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def assert_close(one: torch.Tensor, other: torch.Tensor) -> None:
    """Weights mapped from a file lie differently in memory, which may change the last bit of a product."""
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_save_and_load(tmp_path: Path, pipe: StableDiffusion3Pipeline, guided: Any) -> None:
    guided.call_defaults = {"num_inference_steps": 3, "guidance_scale": 1.0, "max_sequence_length": 4}
    expected, base, before = sample(guided), sample(pipe), state_of(pipe.transformer)
    guided.save_pretrained(tmp_path)
    assert state_of(pipe.transformer)["modules"] == before["modules"]
    assert torch.equal(sample(guided), expected)

    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusion3Pipeline"
    assert json.loads(guided.to_json_string())["_class_name"] == "StableDiffusion3Pipeline"
    stock = DiffusionPipeline.from_pretrained(tmp_path, **NO_T5)
    stock.set_progress_bar_config(disable=True)
    assert type(stock) is StableDiffusion3Pipeline
    assert_same_weights(stock, tiny_pipe())
    assert_close(sample(stock), base)

    loaded = DiffusionNFTPipeline.from_pretrained(tmp_path, nft_adapter=tmp_path / "nft_adapter")
    loaded.set_progress_bar_config(disable=True)
    assert_close(sample(loaded), expected)
    bare = DiffusionNFTPipeline.from_pretrained(str(tmp_path), dtype=torch.bfloat16)
    assert bare.nft_config is None and bare.transformer.dtype == torch.bfloat16

    # call_defaults.json: used where the caller gives nothing, by keyword and by position.
    assert loaded.call_defaults == guided.call_defaults

    def latents(*args: Any, **kwargs: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return loaded(*args, output_type="latent", generator=generator, **kwargs).images

    assert_close(latents("a cat"), expected)
    latents("a cat", num_inference_steps=2)
    assert loaded.nft_stats.steps == 2
    latents("a cat", None, None, None, None, 1)
    assert loaded.nft_stats.steps == 1


def test_equal_calls_are_equal(tmp_path: Path, pipe: StableDiffusion3Pipeline, guided: Any) -> None:
    """What a model's call_defaults.json says holds for the guided pipeline and for the stock one under it."""

    def drawn(pipe: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        call = {"output_type": "latent", "generator": torch.Generator().manual_seed(0)}
        return pipe("a cat", *args, **call, **kwargs).images

    guided.call_defaults = {"num_inference_steps": 3, "guidance_scale": 1.0, "max_sequence_length": 4}
    guided.save_pretrained(tmp_path)
    assert type(guided.unwrap()) is StableDiffusion3Pipeline, "a pipeline of the user's own stays as it is"
    loaded = DiffusionNFTPipeline.from_pretrained(tmp_path, nft_adapter=tmp_path / "nft_adapter")
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((), {}),
        ((), {"num_inference_steps": 2}),
        ((None, None, None, None, 1), {}),
    ]
    expected = [drawn(loaded, *args, **kwargs, nft_strength=0) for args, kwargs in calls]
    stock = loaded.unwrap()
    assert isinstance(stock, StableDiffusion3Pipeline) and type(stock).__name__ == "StableDiffusion3Pipeline"
    assert stock.call_defaults == loaded.call_defaults == guided.call_defaults
    unused = DiffusionNFTPipeline.from_pretrained(tmp_path).unwrap()  # transformers' models do not pickle after a call
    pickled = pickle.loads(pickle.dumps(unused))
    for each in (stock, copy.copy(stock), DiffusionNFTPipeline.from_pipe(stock)):
        for (args, kwargs), latents in zip(calls, expected, strict=True):
            assert torch.equal(drawn(each, *args, **kwargs), latents)
    for (args, kwargs), latents in zip(calls, expected, strict=True):
        # Pickled weights lie elsewhere than those of a mapped file, and where they lie some processors round otherwise.
        torch.testing.assert_close(drawn(pickled, *args, **kwargs), latents, rtol=0, atol=1e-5)
    stock.save_pretrained(tmp_path / "again")
    assert (
        json.loads((tmp_path / "again" / "model_index.json").read_text())["_class_name"] == "StableDiffusion3Pipeline"
    )

    theirs = DiffusionPipeline.from_pretrained(tmp_path, **NO_T5)
    short = {"num_inference_steps": 2, "height": 8, "width": 8}
    again = DiffusionNFTPipeline.from_pipe(theirs, tmp_path / "nft_adapter")
    assert again.call_defaults == {}
    assert torch.equal(drawn(again, **short, nft_strength=0), drawn(theirs, **short))

    loaded.call_defaults = {}
    assert type(loaded.unwrap()) is StableDiffusion3Pipeline


def test_saving_without_an_adapter(tmp_path: Path, pipe: StableDiffusion3Pipeline) -> None:
    DiffusionNFTPipeline.from_pipe(pipe).save_pretrained(tmp_path)
    assert not (tmp_path / "nft_adapter").exists()
    stock = DiffusionPipeline.from_pretrained(tmp_path, **NO_T5)
    stock.set_progress_bar_config(disable=True)
    assert_same_weights(stock, pipe)
    assert_close(sample(stock), sample(pipe))


def test_a_subclass_of_a_stock_class_is_a_guided_pipeline_class(pipe: StableDiffusion3Pipeline, guided: Any) -> None:
    class Mine(DiffusionNFTPipeline, StableDiffusion3Pipeline):
        pass

    mine = Mine(**pipe.components)
    mine.set_progress_bar_config(disable=True)
    assert mine.components.keys() == pipe.components.keys() and mine.call_defaults == {} and mine.nft_stats is None
    expected = sample(guided)
    guided.unwrap()
    assert torch.equal(sample(mine), sample(pipe))
    mine.load_nft_adapter(tiny_adapter(pipe.transformer))
    assert torch.equal(sample(mine), expected) and mine.nft_stats.steps == 3
    again = DiffusionNFTPipeline.from_pipe(mine)
    assert type(again) is type(guided) and type(again.unwrap()) is StableDiffusion3Pipeline
    stock = mine.unwrap()
    assert type(stock) is StableDiffusion3Pipeline and stock.transformer is pipe.transformer
    assert torch.equal(sample(stock), sample(pipe)) and not any(name.startswith("nft") for name in vars(stock))
