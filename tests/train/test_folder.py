"""A folder of scored pictures: read strictly, kept in its proportions, and told apart from what the model draws."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.tiny_run import picture_folder, tiny_base
from nft_pipeline.comfy_nodes.files.ratings import rate_images
from nft_pipeline.files.picture_list import read_rows, update_rows
from nft_pipeline.training.data.folder import (
    DataError,
    bucket_size,
    folder_pool,
    load_picture,
    read_folder,
    residual,
    split,
    support_gap,
)
from nft_pipeline.training.data.pool import Pool
from nft_pipeline.training.rewards.folders.rating import Ratings


def written(folder, *lines):
    folder.mkdir(exist_ok=True)
    (folder / "metadata.jsonl").write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return folder


@pytest.fixture
def data(tmp_path):
    return picture_folder(tmp_path / "data", 12)


def test_pictures_become_latents_in_buckets_of_their_shape(data):
    base = tiny_base()
    pool, found = folder_pool(read_folder(data), base, "raw")
    assert len(pool) == 12 and found.dropped == 0 and pool.r.tolist() == [0.0, 1.0] * 6
    shapes = {tuple(latents.shape[-2:]) for latents in pool.buckets}
    assert (8, 8) in shapes and any(wide > high for high, wide in shapes)
    for i in (0, 1, 5):
        size = pool.buckets[int(pool.bucket[i])].shape[-2:]
        picture = load_picture(data / f"{i}.png", tuple(edge * base.pixels_per_latent for edge in size))
        rows = torch.tensor([i])
        torch.testing.assert_close(pool.x_0(rows), base.encode_pictures(picture[None]).half().float())
    assert [int(i) for i in pool.prompt[:4]] == [0, 2, 1, 0]  # of "a cat", "a cow", "a dog"


def test_a_batch_is_of_one_bucket_and_every_sample_has_its_turn(data):
    pool, _ = folder_pool(read_folder(data), tiny_base(), "raw")
    generator, seen = torch.Generator().manual_seed(0), torch.zeros(12)
    for _ in range(300):
        rows = pool.draw(4, generator)
        assert len(pool.bucket[rows].unique()) == 1
        seen[rows] += 1
    assert seen.min() > 0.5 * seen.mean()
    liked = pool.draw(200, generator, weight=pool.r)
    assert bool((pool.r[liked] == 1).all())
    assert sorted(torch.cat(list(pool.batches(5))).tolist()) == list(range(12))


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(512, 512, (512, 512)), (1024, 512, (384, 704)), (512, 1024, (704, 384)), (3, 1000, (2048, 128))],
)
def test_sizes_keep_the_area_and_come_near_the_proportions(width, height, expected):
    found = bucket_size(width, height, 512 * 512, 64)
    assert all(edge % 64 == 0 for edge in found)
    assert abs(found[0] * found[1] / 512**2 - 1) < 0.15
    if expected != (2048, 128):
        assert abs(np.log(found[1] / found[0]) - np.log(width / height)) < 0.15


def test_a_picture_is_cropped_in_its_middle(tmp_path):
    picture = np.zeros((10, 30, 3), dtype=np.uint8)
    picture[:, 10:20] = 200
    Image.fromarray(picture).save(tmp_path / "x.png")
    assert load_picture(tmp_path / "x.png", (10, 10)).min() >= 190


def test_foreign_pictures_have_a_wider_support_gap_than_the_models_own():
    base = tiny_base()
    conditions = base.encode_prompts(["a cat"])
    own = base.sample(conditions, torch.zeros(48, dtype=torch.int64), seed=0, batch=48)
    prompt = torch.zeros(48, dtype=torch.int64)
    foreign = Pool.of(5 * torch.randn(own.shape), prompt, conditions, torch.zeros(48))
    same = Pool.of(base.sample(conditions, prompt, seed=1, batch=48), prompt, conditions, torch.zeros(48))
    assert support_gap(base, same, own, prompt, 16) == pytest.approx(1, abs=0.25)
    assert support_gap(base, foreign, own, prompt, 16) > 3
    assert residual(base, same, 16) == residual(base, same, 16)


def test_every_tenth_is_held_out(data):
    pool, _ = folder_pool(read_folder(data), tiny_base(), "raw")
    training, held_out = split(pool, 4)
    assert (len(training), len(held_out)) == (9, 3)
    assert torch.equal(held_out.x_0(torch.tensor([0])), pool.x_0(torch.tensor([3])))


def test_what_score_rate_and_comfyui_write_is_read_and_the_unjudged_are_left_out(data, tmp_path):
    ratings = Ratings(data)
    for i, liked in enumerate((True, False, True)):
        ratings.rate(f"{i}.png", liked)
    ratings.undo()
    lines = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    (data / "metadata.jsonl").unlink()
    update_rows(data, {line["image"]: {**line, "score": None} for line in lines})
    found = read_folder(data)
    assert [picture.score for picture in found.pictures][:2] == [1.0, 0.0] and found.liked
    facts = {"prompt": "a cat", "seed": 3, "guidance_scale": 1.0, "model": "tiny.safetensors"}
    rate_images(tmp_path / "rated", torch.rand(2, 64, 64, 3), "dislike", 0.0, facts)
    assert [picture.score for picture in read_folder(tmp_path / "rated").pictures] == [0.0, 0.0]
    scored = {"prompt": "a cat", "score": 0.5, "scores": {"ocr": 1.0}, "reward": "ocr"}
    update_rows(
        tmp_path / "rated", {line["image"]: {**scored, "liked": None} for line in read_rows(tmp_path / "rated")}
    )
    assert [picture.score for picture in read_folder(tmp_path / "rated").pictures] == [0.5, 0.5]
    nothing = written(data, {"image": "0.png", "prompt": "a cat"})
    with pytest.raises(DataError, match=r"no line with a score or liked \(1 have neither\)"):
        read_folder(nothing)


def test_every_fault_of_the_lines_is_in_one_report(data):
    good = {"image": "0.png", "prompt": "a cat", "score": 1}
    folder = written(
        data,
        good,
        "{",
        {"image": "nowhere.png", "prompt": "", "score": "high"},
        {"image": "0.png", "prompt": "a", "liked": 1, "colour": 2},
        {"image": "0.png", "prompt": "a", "score": 1, "liked": True},
        {**good, "score": float("nan")},
        [1],
        {"image": "0.png", "prompt": "a", "liked": True},
        {**good, "guidance_scale": "high"},
    )
    with pytest.raises(DataError) as caught:
        read_folder(folder)
    report = str(caught.value)
    for phrase in (
        "line 2 is no JSON",
        "line 3: prompt is '', expected text",
        "line 3: score is 'high', expected a finite number",
        "line 3: there is no picture",
        "line 4: 'colour' is not known",
        "line 4: liked is 1, expected true or false",
        "line 5: it has score and liked; take out the one",
        "line 6: score is nan, expected a finite number",
        "line 7: it holds list, expected an object",
        "line 9: guidance_scale is 'high', expected a number, or null",
        "some lines have a score and some have liked",
    ):
        assert phrase in report, phrase


def test_a_folder_without_lines_or_with_a_broken_picture_is_named(tmp_path, data):
    with pytest.raises(DataError, match=r"there is no .*metadata.jsonl; expected one JSON object per line"):
        read_folder(tmp_path)
    with pytest.raises(DataError, match="there is no line"):
        read_folder(written(tmp_path / "empty", ""))
    (data / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"3.png cannot be read as a picture"):
        folder_pool(read_folder(data), tiny_base(), "raw")
