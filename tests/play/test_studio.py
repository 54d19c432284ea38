"""What the page draws with, without gradio: one noise at many strengths, what is kept and stopped, and likes."""

from __future__ import annotations

import itertools
import json
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.tiny import tiny_adapter, tiny_pipe
from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.call.forwards import before_each_forward
from nft_pipeline.files.picture_list import PictureListError, read_rows
from nft_pipeline.models import ADAPTERS, MODELS, example_prompts, shipped_adapters_of
from nft_pipeline.play import words
from nft_pipeline.play.likes import as_zip, count, keep
from nft_pipeline.play.studio import KEPT, Drawn, Studio, View, Wish, short_names
from nft_pipeline.training.data.folder import read_folder

WISH = Wish("shapes-warm", "two squares", 3, 1.0)


@pytest.fixture(scope="module")
def loaded() -> Studio:
    return Studio.open("shapes", shipped_adapters_of("shapes"), device="cpu", stock={"num_inference_steps": 2})


@pytest.fixture
def studio(loaded: Studio) -> Studio:
    """The shipped model in two steps, with nothing drawn yet."""
    fresh = Studio(loaded.pipe, loaded.adapters, stock=loaded.stock)
    fresh._rates = loaded._rates  # a prompt's base rate takes a second to read
    return fresh


def last(studio: Studio, wish: Wish) -> View:
    return list(studio.follow(wish))[-1]


def forwards_of(studio: Studio) -> list[None]:
    """Grows by one with every forward of the denoiser."""
    counted: list[None] = []
    studio.pipe.transformer.register_forward_pre_hook(lambda module, args: counted.append(None))
    return counted


def test_strengths_share_a_noise_and_each_takes_one_forward_a_step(studio: Studio) -> None:
    counted = forwards_of(studio)
    pictures = [studio.draw(replace(WISH, strength=strength)).picture for strength in (0.0, 0.5, 1.0, 2.0)]
    assert len(counted) == 4 * 2  # the shipped adapter's own mode is single
    arrays = [np.asarray(picture).astype(int) for picture in pictures]
    assert all((a != b).any() for a, b in itertools.pairwise(arrays))
    noise = torch.Generator("cpu").manual_seed(3)
    base = studio.pipe(prompt="two squares", generator=noise, nft_strength=0.0, num_inference_steps=2).images[0]
    assert abs(np.asarray(base).astype(int) - arrays[0]).max() <= 1


def test_a_picture_that_was_drawn_comes_back_at_once(studio: Studio) -> None:
    first = last(studio, WISH)
    counted = forwards_of(studio)
    again = last(studio, WISH)
    assert again.after is first.after and again.before is first.before and again.promise == first.promise
    assert not counted
    for seed in range(KEPT + 2):
        studio._drawn[replace(WISH, seed=100 + seed)] = first.before  # type: ignore[assignment]
    studio.draw(WISH)
    assert len(studio._drawn) == KEPT


def test_views_come_in_order_and_end_with_what_is_known(studio: Studio) -> None:
    views = list(studio.follow(WISH))
    assert views[0].before is not None and views[0].after is None and not views[0].done
    assert [view.done for view in views] == [False] * (len(views) - 1) + [True]
    end = views[-1]
    assert end.promise is not None and end.promise.measured and end.promise.rate > end.promise.base
    assert end.after is not None and end.after.stats is not None and end.before is not None
    assert end.before.stats is not None and bool(end.before.stats.forecast.isfinite().all())
    assert 0 < end.after.stats.forecast[-1].item() < 1


def test_the_adapter_is_changed_with_the_wish(studio: Studio) -> None:
    warm, follow = last(studio, WISH), last(studio, replace(WISH, adapter="shapes-follow"))
    assert (np.asarray(warm.after.picture) != np.asarray(follow.after.picture)).any()  # type: ignore[union-attr]
    assert follow.promise is not None and follow.promise.measured  # for the prompts of its calibration: it has no head
    assert last(studio, replace(WISH, strength=1.5)).promise is not None


def test_what_is_not_wanted_any_more_stops_in_the_middle_of_a_picture(studio: Studio) -> None:
    counted = forwards_of(studio)
    views = list(studio.follow(WISH, lambda: len(counted) < 3))
    assert len(counted) <= 4 and not views[-1].done and views[-1].after is None
    assert last(studio, WISH).done  # and nothing is left behind


def test_one_picture_at_a_time(studio: Studio) -> None:
    inside: list[Wish] = []
    most: list[int] = []
    draw = studio._draw

    def watched(wish: Wish, look: Callable[[], None]) -> Drawn:
        inside.append(wish)
        most.append(len(inside))
        try:
            return draw(wish, look)
        finally:
            inside.remove(wish)

    studio._draw = watched  # type: ignore[method-assign]
    threads = [
        threading.Thread(target=last, args=(studio, replace(WISH, seed=seed, strength=float(seed % 2))))
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1] * 6


def test_an_error_reaches_whoever_follows(studio: Studio) -> None:
    studio.stock["height"] = 63
    with pytest.raises(ValueError, match="divisible"):
        last(studio, WISH)


def test_strengths_are_offered_as_far_as_the_calibration_reaches(studio: Studio) -> None:
    for name in ("shapes-warm", "shapes-follow"):
        low, high = studio.range(name)
        config = studio.config(name)
        assert config.dial is not None
        assert low <= config.dial.own.lowest / config.tilt < low + 0.1
        assert high - 0.1 < config.dial.own_reach.highest / config.tilt <= high
    assert high > config.dial.own.highest / config.tilt, "two passes go on where one ends"
    unknown = replace(studio.adapters["shapes-follow"], config=replace(config, dial=None))
    assert Studio(studio.pipe, {"a": unknown}, stock=studio.stock).range("a") == (-2.0, 4.0)


def test_an_adapter_that_nothing_is_known_of() -> None:
    pipe = tiny_pipe()
    adapter = tiny_adapter(pipe.transformer, kind="policy")
    guided = DiffusionNFTPipeline.from_pipe(pipe, adapter)
    stock = {"num_inference_steps": 2, "guidance_scale": 1.0, "max_sequence_length": 4}
    end = last(Studio(guided, {"a": adapter}, stock=stock), Wish("a", "a cat", 0, 1.0))
    assert end.done and end.promise is None
    text = words.numbers(end)
    assert "has no alpha head" in text and "Nothing is known" in text and "<svg" not in text


def test_looking_before_each_forward_ends_with_the_context(studio: Studio) -> None:
    looks: list[None] = []
    with before_each_forward(studio.pipe, lambda: looks.append(None)):
        studio.draw(WISH)
    assert len(looks) == 2
    studio.draw(replace(WISH, seed=9))
    assert len(looks) == 2


def test_likes_are_a_folder_that_training_takes(studio: Studio, tmp_path: Path) -> None:
    folder = tmp_path / "likes"
    assert count(folder) == "0 liked, 0 disliked"
    assert keep(folder, studio, WISH, True) == "1 liked, 0 disliked"
    assert keep(folder, studio, replace(WISH, seed=4), False) == "1 liked, 1 disliked"
    assert keep(folder, studio, replace(WISH, seed=4), True) == "2 liked, 0 disliked"  # on second thoughts
    rows = read_rows(folder)
    expected = {"prompt": "two squares", "liked": True, "seed": 3, "strength": 1.0, "guidance_scale": 1.0}
    assert rows[0] == {"image": rows[0]["image"], **expected, "adapter": "shapes-warm", "model": "shapes"}
    held = read_folder(folder)
    assert held.liked and [picture.score for picture in held.pictures] == [1.0, 1.0]
    from PIL import Image

    with Image.open(folder / rows[0]["image"]) as picture:
        assert (np.asarray(picture) == np.asarray(studio.draw(WISH).picture)).all()  # as drawn, not enlarged


def test_a_list_that_is_broken_is_left_alone(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text("no json\n")
    with pytest.raises(PictureListError, match="1 bad lines"):
        keep(tmp_path, studio, WISH, True)
    assert (tmp_path / "metadata.jsonl").read_text() == "no json\n"


def test_likes_in_one_file_hold_pictures_and_list_and_nothing_else(studio: Studio, tmp_path: Path) -> None:
    folder = tmp_path / "likes"
    keep(folder, studio, WISH, True)
    with zipfile.ZipFile(as_zip(folder)) as file:
        names = sorted(file.namelist())
        assert names == sorted(["metadata.jsonl", read_rows(folder)[0]["image"]])
        assert json.loads(file.read("metadata.jsonl"))["liked"] is True


def test_the_words_of_a_picture(studio: Studio) -> None:
    end = last(studio, WISH)
    text = words.numbers(end)
    assert end.after is not None and end.after.stats is not None
    chance = f"{end.after.stats.forecast[-1].item():.0%}".replace("%", " %")
    assert f"This picture will be liked with {chance}." in text and "The one at strength 0:" in text
    assert "liked becomes" in text and "2 forwards" in text and "alpha 0." in text
    assert text.count("<polyline") == 2
    running = words.numbers(View(WISH, before=end.before, running=end.after.stats))
    assert "Drawing: 2 steps so far." in running and chance in running
    assert "Drawing." in words.numbers(View(WISH))


def test_words_of_others_are_text_and_not_html() -> None:
    assert "<b>" not in words.fault(ValueError("<b>")) and "&lt;b&gt;" in words.fault(ValueError("<b>"))
    assert "<i>" not in words.about("<i>", "<i>")


def test_short_names_stay_apart() -> None:
    assert short_names(["runs/a/adapter", "someone/red"]) == ["adapter", "red"]
    assert short_names(["runs/a/adapter", "runs/b/adapter/"]) == ["runs/a/adapter", "runs/b/adapter/"]
    assert short_names(["C:\\models\\red"]) == ["red"]


@pytest.mark.parametrize("model", MODELS)
def test_every_shipped_model_brings_examples_and_adapters(model: str) -> None:
    assert len(example_prompts(model)) >= 2 and set(shipped_adapters_of(model)) <= set(ADAPTERS)


def test_every_shipped_adapter_is_some_shipped_models() -> None:
    assert sorted(name for model in MODELS for name in shipped_adapters_of(model)) == sorted(ADAPTERS)
    assert example_prompts("someone/else") == [] and shipped_adapters_of("someone/else") == []
