"""Training, scoring, collecting and serving see a picture as the person who rated it did."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nft_pipeline.files.pictures import as_seen, read_picture, upright_size
from nft_pipeline.training.data.folder import DataError, load_picture
from nft_pipeline.training.rewards.folders.scoring import _batches


def on_its_side(path: Path) -> None:
    """A picture whose top half is white, stored turned by 90 degrees with the note that says so."""
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_a_picture_that_is_stored_on_its_side_is_turned(tmp_path: Path, name: str) -> None:
    on_its_side(tmp_path / name)
    picture = np.asarray(read_picture(tmp_path / name))
    assert picture.shape == (16, 8, 3) and upright_size(tmp_path / name) == (8, 16)
    assert picture[:7].min() > 240 and picture[9:].max() < 15
    loaded = load_picture(tmp_path / name, (16, 8))
    assert np.array_equal(loaded, picture)
    (batch,) = _batches(tmp_path, [name], 4, [])
    assert np.array_equal(np.asarray(batch[1][0]), picture)


def test_16_bits_keep_their_range(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert np.abs(np.asarray(read_picture(tmp_path / "a.png"))[0, :, 0].astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode: str) -> None:
    picture = Image.new(mode, (2, 2))
    if mode == "P":
        picture.info["transparency"] = 0
    assert as_seen(picture).getpixel((0, 0)) == (255, 255, 255)


def test_half_transparent_is_between() -> None:
    assert as_seen(Image.new("RGBA", (1, 1), (255, 0, 0, 128))).getpixel((0, 0)) == (255, 127, 127)


def test_a_script_for_a_printer_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match=r"a\.png cannot be read as a picture"):
        load_picture(tmp_path / "a.png", (8, 8))
    unreadable: list[str] = []
    assert list(_batches(tmp_path, ["a.png"], 4, unreadable)) == [] and unreadable


def test_mutated_pictures_are_read_or_named() -> None:
    chance, file = np.random.default_rng(0), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (9, 7), "red").save(file, "PNG", exif=exif)
    for _ in range(300):
        data = bytearray(file.getvalue())
        for place in chance.integers(8, len(data), 3):
            data[place] = chance.integers(256)
        try:
            assert read_picture(io.BytesIO(bytes(data))).mode == "RGB"
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
