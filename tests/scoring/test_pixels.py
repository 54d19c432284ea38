"""Rewards of pixels alone, against closed forms and the scorers they call."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from helpers.plain_pictures import noise, plain
from nft_pipeline.training.rewards import RewardError, load_reward
from nft_pipeline.training.rewards.pictures import to_arrays, to_tensor
from nft_pipeline.training.shapes.prompts import shapes_eval_held_out
from nft_pipeline.training.shapes.score import judge, look
from nft_pipeline.training.shapes.world import Prompt, draw, scene_for


def score(name: str, *pictures: Image.Image, prompts: list[str] | None = None, **options: object) -> list[float]:
    return load_reward(name, **options)(pictures, prompts or [""] * len(pictures)).scores.tolist()


def test_jpeg_size_is_bits_a_pixel() -> None:
    picture, buffer = noise(0, 64), io.BytesIO()
    picture.save(buffer, format="JPEG", quality=95)
    assert score("jpeg_size", picture) == pytest.approx([8 * len(buffer.getvalue()) / 64**2])
    busy, flat = score("jpeg_size", noise(1, 64), plain("red", (64, 64)))
    assert busy > 5 * flat


def test_colourfulness_in_closed_form() -> None:
    # Half red, half green: rg is +-255 and yb is 127.5 everywhere.
    halves = np.zeros((8, 8, 3), np.uint8)
    halves[:4, :, 0] = halves[4:, :, 1] = 255
    red = 0.3 * math.hypot(255, 127.5)
    found = score("colourfulness", plain("gray"), plain("red"), Image.fromarray(halves))
    assert found == pytest.approx([0.0, red, 255 + 0.3 * 127.5])


def test_sharpness_in_closed_form_and_in_order() -> None:
    # Stripes of one pixel, 0 and 255: the Laplacian is +-510 away from the sides.
    stripes = np.tile(np.array([0, 255], np.uint8), (200, 100))
    (crisp,) = score("sharpness", Image.fromarray(stripes).convert("RGB"))
    assert crisp == pytest.approx(math.log10(1 + 510**2), abs=0.01)
    picture = noise(0, 64)
    flat, soft, sharp = score("sharpness", plain("red"), picture.filter(ImageFilter.GaussianBlur(2)), picture)
    assert flat == 0 < soft < sharp


def test_shapes_rewards_are_what_the_reader_of_pictures_says() -> None:
    rng, prompts = np.random.default_rng(0), shapes_eval_held_out(12)
    pictures = [Image.fromarray(draw(scene_for(Prompt.parse(prompt), rng))) for prompt in prompts]
    arrays = to_arrays(pictures)
    colours = [{thing.colour for thing in look(array)[1]} for array in arrays]
    expected = {
        "shapes_eval": [judge(a, Prompt.parse(text)).correct for a, text in zip(arrays, prompts, strict=True)],
        "shapes_warm": [bool(some) and some <= {"red", "orange"} for some in colours],
    }
    for name, good in expected.items():
        assert load_reward(name)(pictures, prompts).scores.tolist() == good
        assert torch.equal(load_reward(name)(to_tensor(pictures), prompts).scores, torch.tensor(good).float())
    assert sum(score("shapes_eval", *pictures, prompts=prompts)) >= 10


def test_shapes_rewards_say_what_they_cannot_read() -> None:
    with pytest.raises(RewardError, match="32 x 32 px, expected 64 x 64"):
        score("shapes_eval", noise(0, 32))
    with pytest.raises(RewardError, match="reward 'shapes_eval': "):
        score("shapes_eval", noise(0, 64), prompts=["a photograph of a dog"])


def test_likes_come_from_metadata_or_from_a_rated_folder(tmp_path: Path) -> None:
    rows = []
    for i in range(3):
        noise(i).save(tmp_path / f"{i}.png")
        rows.append({"image": f"{i}.png", "prompt": "", **({"liked": i == 0} if i < 2 else {})})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score("likes", noise(1), noise(0), folder=str(tmp_path)) == [0.0, 1.0]
    assert load_reward("likes")([noise(5)], [""], [{"liked": True}]).scores.tolist() == [1.0]
    with pytest.raises(RewardError, match="no rating for 1 pictures of 2, the first is number 1"):
        score("likes", noise(0), noise(2), folder=str(tmp_path))
    with pytest.raises(RewardError, match=r"the first is 2\.png; rate them with: diffusion-nft rate"):
        load_reward("likes")([noise(2)], [""], [rows[2]])
