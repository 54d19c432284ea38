"""Datasets become folders: saved ones, webdataset shards, parquet, a folder of pictures; wrong ones are named."""

import io
import json
import tarfile

import datasets
import numpy as np
import pytest
from PIL import Image

from nft_pipeline.cli import main
from nft_pipeline.training.data.collect import Columns, collect
from nft_pipeline.training.data.folder import DataError, read_folder

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def picture(colour):
    return Image.new("RGB", (8, 6), colour)


def saved(folder, **columns):
    table = {"image": [picture(colour) for colour in COLOURS], "prompt": ["a", "b", "a", "c"], **columns}
    features = datasets.Dataset.from_dict({k: v for k, v in table.items() if k != "image"}).features
    features = datasets.Features({"image": datasets.Image(), **features})
    made = datasets.Dataset.from_dict(table, features=features)
    made.save_to_disk(folder)
    return made


def lines(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_a_saved_dataset_comes_over_whole(tmp_path):
    saved(tmp_path / "set", score=[0.1, 0.2, float("nan"), 0.4], seed=[1, 2, 3, 4], other=list("wxyz"))
    assert collect(str(tmp_path / "set"), tmp_path / "out") == (4, 0)
    found = lines(tmp_path / "out")
    assert found[0] == {"image": "000000.png", "prompt": "a", "score": 0.1, "seed": 1}
    assert [line.get("score") for line in found] == [0.1, 0.2, None, 0.4]
    for line, colour in zip(found, COLOURS, strict=True):
        assert np.array_equal(Image.open(tmp_path / "out" / line["image"]), picture(colour))
    folder = read_folder(tmp_path / "out")
    assert len(folder.pictures) == 3 and folder.unjudged == 1 and not folder.liked


def test_webdataset_shards_with_what_is_said_in_their_json(tmp_path):
    with tarfile.open(tmp_path / "shard-0.tar", "w") as tar:
        for i, colour in enumerate(COLOURS):
            png = io.BytesIO()
            picture(colour).save(png, "png")
            said = json.dumps({"liked": bool(i % 2), "guidance_scale": 1.0}).encode()
            for suffix, content in (("png", png.getvalue()), ("txt", b"a cat \n"), ("json", said)):
                entry = tarfile.TarInfo(f"{i:03d}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    assert collect(str(tmp_path / "shard-*.tar"), tmp_path / "out", limit=3) == (3, 0)
    assert lines(tmp_path / "out")[1] == {
        "image": "000001.png",
        "prompt": "a cat",
        "liked": True,
        "guidance_scale": 1.0,
    }
    assert read_folder(tmp_path / "out").liked


def test_parquet_and_columns_of_other_names(tmp_path, capsys):
    made = saved(tmp_path / "set", good=[0, 1, 1, 0], caption=["x", "", "y", "z"])
    made.to_parquet(tmp_path / "votes.parquet")
    command = ["collect", str(tmp_path / "votes.parquet"), str(tmp_path / "out"), "--prompt", "caption"]
    assert main([*command, "--liked", "good"]) == 0
    assert (
        "3 pictures in" in (said := capsys.readouterr().out)
        and "row 2: it has no prompt; it is left out" in said
        and "1 rows left out" in said
    )
    assert [(line["prompt"], line["liked"]) for line in lines(tmp_path / "out")] == [
        ("x", False),
        ("y", True),
        ("z", False),
    ]


def test_a_folder_of_pictures_in_their_own_layout(tmp_path):
    (tmp_path / "pictures").mkdir()
    with (tmp_path / "pictures" / "metadata.jsonl").open("w") as file:
        for i, colour in enumerate(COLOURS):
            picture(colour).save(tmp_path / "pictures" / f"{i}.png")
            file.write(json.dumps({"file_name": f"{i}.png", "text": f"number {i}", "score": i}) + "\n")
    assert collect(str(tmp_path / "pictures"), tmp_path / "out") == (4, 0)
    assert {(line["prompt"], line["score"]) for line in lines(tmp_path / "out")} == {
        (f"number {i}", i) for i in range(4)
    }


@pytest.mark.parametrize(
    ("columns", "choice", "phrase"),
    [
        ({}, {"split": "test", "source": "nobody/nothing"}, "the dataset nobody/nothing, split 'test', cannot be read"),
        ({}, {"columns": Columns(prompt="words")}, "has no column 'words' for prompt; its columns are image, prompt"),
        ({"score": list("abcd")}, {}, "row 1: score is 'a', expected a number"),
        ({"liked": [2] * 4}, {}, "row 3: liked is 2, expected true, false, 1 or 0"),
        ({"score": [1] * 4}, {"columns": Columns(score="score", liked="prompt")}, "cannot both be learned from"),
        ({"prompt": [""] * 4}, {}, "none of the 4 rows of .* can be used:\n  row 1: it has no prompt"),
    ],
)
def test_what_cannot_be_collected_is_named_and_leaves_nothing(tmp_path, columns, choice, phrase):
    saved(tmp_path / "set", **columns)
    choice = dict(choice)
    with pytest.raises(DataError, match=phrase):
        collect(choice.pop("source", str(tmp_path / "set")), tmp_path / "out", **choice)
    assert not (tmp_path / "out").exists()


def shard(path, count=4, broken=()):
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            png = io.BytesIO()
            picture(COLOURS[i % 4]).save(png, "png")
            content = png.getvalue()[: 40 if i in broken else None]
            for suffix, data in (("png", content), ("txt", b"a cat")):
                entry = tarfile.TarInfo(f"{i:03d}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def test_bad_rows_are_left_out_with_their_numbers(tmp_path):
    """Nothing of the others is lost, whatever is wrong with one."""
    said = []
    shard(tmp_path / "a.tar", broken=(2,))
    assert collect(str(tmp_path / "a.tar"), tmp_path / "a", say=said.append) == (3, 1)
    assert said[0].startswith("row 3: ") and said[0].endswith("it is left out") and "BytesIO" not in said[0]
    saved(tmp_path / "set", liked=[1, 0, 2, 1], guidance_scale=[1.0, float("nan"), 1.0, float("inf")])
    assert collect(str(tmp_path / "set"), tmp_path / "b", say=said.append) == (3, 1)
    assert said[1] == "row 3: liked is 2, expected true, false, 1 or 0; it is left out"
    assert [line.get("guidance_scale") for line in lines(tmp_path / "b")] == [1.0, None, None]


@pytest.mark.parametrize("kept", [0, 700, 5000, -1300])
def test_a_shard_that_was_cut_off_is_named(tmp_path, kept):
    shard(tmp_path / "a.tar")
    data = (tmp_path / "a.tar").read_bytes()
    whole = data.rstrip(b"\0")
    (tmp_path / "a.tar").write_bytes(whole[:kept])
    with pytest.raises(DataError, match=r"a\.tar (is cut off|cannot be read as a tar file)"):
        collect(str(tmp_path / "*.tar"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_without_pictures_or_into_a_full_folder(tmp_path):
    datasets.Dataset.from_dict({"prompt": ["a"]}).save_to_disk(tmp_path / "words")
    with pytest.raises(DataError, match=r"no column that is surely the image; name it with --image.*are prompt"):
        collect(str(tmp_path / "words"), tmp_path / "out")
    with pytest.raises(DataError, match="holds something already"):
        collect(str(tmp_path / "words"), tmp_path / "words")


@pytest.mark.parametrize(
    ("source", "builder"),
    [
        ("shards/{000..010}.tar", "webdataset"),
        ("https://example.org/a.tar?download=true", "webdataset"),
        ("b.tar.gz", "webdataset"),
        ("votes-*.parquet", "parquet"),
        ("someone/pictures.targets", None),
        ("someone/parquet", None),
    ],
)
def test_what_a_source_is_goes_by_how_its_name_ends(source, builder, tmp_path, monkeypatch):
    asked = []

    def load_dataset(path, **more):
        asked.append((path, more.get("data_files")))
        raise OSError("nothing there")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError, match="nothing there"):
        collect(source, tmp_path / "out")
    assert asked == [(builder or source, {"train": source} if builder else None)]
