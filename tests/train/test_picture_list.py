"""metadata.jsonl has one reader and one writer: what any tool writes, every tool reads."""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from nft_pipeline.comfy_nodes.files.ratings import rate_images
from nft_pipeline.errors import GuidanceError
from nft_pipeline.files.picture_list import (
    METADATA,
    PictureListError,
    changing_rows,
    find_pictures,
    read_rows,
    update_rows,
)
from nft_pipeline.training.data.collect import collect
from nft_pipeline.training.data.folder import DataError, read_folder
from nft_pipeline.training.rewards import load_reward, load_rewards
from nft_pipeline.training.rewards.folders.rating import Ratings
from nft_pipeline.training.rewards.folders.scoring import score_folder

# Everything that some function of Python takes for the end of a line, and what else JSON or an editor may stumble over.
ODD = '\n\r\x0b\x0c\x1c\x85\u2028\u2029\ufeff"\\{é環🜁 x'
PICTURES = 3


def prompts(seed: int) -> list[str]:
    chance = random.Random(seed)
    return [f"a{''.join(chance.choices(ODD, k=12))}z" for _ in range(PICTURES)]


def pictures(folder: Path, texts: list[str], **more: Any) -> Path:
    """A folder of pictures with a list that this test wrote by itself."""
    folder.mkdir()
    rows = []
    for i, text in enumerate(texts):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "prompt": text, **more})
    (folder / METADATA).write_text("\n".join(map(json.dumps, rows)))
    return folder


def by_collect(folder: Path, texts: list[str]) -> None:
    table = {"prompt": texts, "score": [0.5] * len(texts), "image": [Image.new("RGB", (8, 8))] * len(texts)}
    features = datasets.Features(
        prompt=datasets.Value("string"), score=datasets.Value("float64"), image=datasets.Image()
    )
    datasets.Dataset.from_dict(table, features=features).save_to_disk(folder.with_name("set"))
    collect(str(folder.with_name("set")), folder)


def by_score(folder: Path, texts: list[str]) -> None:
    score_folder(pictures(folder, texts), load_rewards({"sharpness": 1.0}))


def by_rate(folder: Path, texts: list[str]) -> None:
    ratings = Ratings(pictures(folder, texts))
    for i in range(len(texts)):
        ratings.rate(f"{i}.png", i % 2 == 0)


def by_the_node(folder: Path, texts: list[str]) -> None:
    for i, text in enumerate(texts):
        facts = {"prompt": text, "seed": i, "guidance_scale": 1.0, "model": "x.safetensors"}
        rate_images(folder, torch.full((1, 8, 8, 3), i / 9), "like", 0.0, facts)


def by_an_update(folder: Path, texts: list[str]) -> None:
    update_rows(pictures(folder, texts), {f"{i}.png": {"liked": True} for i in range(len(texts))})


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("write", [by_collect, by_score, by_rate, by_the_node, by_an_update])
def test_what_any_tool_writes_every_tool_reads(
    tmp_path: Path, write: Callable[[Path, list[str]], None], seed: int
) -> None:
    texts, folder = prompts(seed), tmp_path / "pictures"
    write(folder, texts)
    written = (folder / METADATA).read_bytes()
    assert [row["prompt"] for row in read_rows(folder)] == texts  # what score and the reward `likes` read
    assert [picture.prompt for picture in read_folder(folder).pictures] == texts  # the trainer
    assert sorted(Ratings(folder).prompts.values()) == sorted(texts)
    if "liked" in read_rows(folder)[0]:
        load_reward("likes", folder=str(folder))
    facts = {"prompt": "another"}
    (name,) = rate_images(folder, torch.rand(1, 8, 8, 3), "dislike", 0.0, facts)
    assert (folder / METADATA).read_bytes().startswith(written), "the node changed the lines that were there"
    assert find_pictures(folder).count(name) == 1 and read_rows(folder)[-1]["image"] == name


def test_a_byte_order_mark_and_the_line_ends_of_windows_are_read(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", ["a", "b"], score=1)
    lines = (folder / METADATA).read_text().split("\n")
    (folder / METADATA).write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode())
    assert [row["prompt"] for row in read_rows(folder)] == ["a", "b"]
    assert [picture.prompt for picture in read_folder(folder).pictures] == ["a", "b"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' file names are always Unicode")
def test_a_picture_whose_name_is_not_utf_8_is_named(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", ["a", "b"])
    (folder / "1.png").rename(folder / os.fsdecode(b"odd-\xff.png"))
    for use in (find_pictures, Ratings, lambda folder: score_folder(folder, load_rewards({"sharpness": 1.0}))):
        with pytest.raises(PictureListError, match=r"1 pictures whose names are not UTF-8.*: odd-\\udcff\.png"):
            use(folder)


@pytest.mark.parametrize(
    ("line", "phrase"),
    [
        (b"no json", "line 1 is no JSON"),
        (b"[" * 100_000, "line 1 is no JSON"),
        (b'{"image": " "}', "line 1: image is ' ', expected a path inside the folder"),
        (b'{"image": "x.png", "score": NaN}', "line 1: score is nan, expected a finite number"),
        (b'{"image": "x.png", "score": 1' + b"0" * 400 + b"}", "expected a finite number"),
        (b"\xff", "is not UTF-8 text"),
    ],
)
def test_no_reader_takes_a_bad_line_and_no_writer_replaces_it(tmp_path: Path, line: bytes, phrase: str) -> None:
    folder = pictures(tmp_path / "pictures", ["a"])
    (folder / METADATA).write_bytes(line)
    with pytest.raises(PictureListError, match=phrase):
        read_rows(folder)
    with pytest.raises(DataError, match=phrase):
        read_folder(folder)
    with pytest.raises(PictureListError, match=phrase):
        update_rows(folder, {"x.png": {"liked": True}})
    with pytest.raises(GuidanceError, match=phrase):
        rate_images(folder, torch.rand(1, 8, 8, 3), "like", 0.0, {"prompt": "a"})
    assert (folder / METADATA).read_bytes() == line
    assert find_pictures(folder) == ["0.png"]


def test_a_picture_twice_or_outside_is_trained_on_but_not_written_to(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", ["a", "b"], score=1)
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    more = [{"image": "0.png", "prompt": "another", "score": 0}, {"image": "../outside.png", "prompt": "c", "score": 0}]
    (folder / METADATA).write_text((folder / METADATA).read_text() + "".join("\n" + json.dumps(row) for row in more))
    assert len(read_folder(folder).pictures) == 4
    with pytest.raises(PictureListError) as caught:
        read_rows(folder)
    assert len(caught.value.faults) == 2


def test_an_error_inside_a_change_writes_nothing(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", ["a"])
    before = (folder / METADATA).read_bytes()
    with pytest.raises(ZeroDivisionError), changing_rows(folder) as rows:
        rows.clear()
        raise ZeroDivisionError
    assert (folder / METADATA).read_bytes() == before
