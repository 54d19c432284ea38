"""The labelled grid: pictures land where they should, labels are drawn, faults are named."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from nft_pipeline.grid import BACKGROUND, _wrap, labelled_grid

RED, GREEN, BLUE, PURPLE = (200, 30, 30), (30, 160, 60), (40, 80, 220), (150, 50, 180)


def plain(colour: tuple[int, int, int], width: int = 32, height: int = 32) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def box(grid: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The smallest box around all pixels of a colour."""
    rows, columns = np.nonzero((np.asarray(grid) == colour).all(axis=2))
    assert len(rows), f"no pixel of colour {colour}"
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def test_every_picture_is_there_enlarged_and_in_its_place() -> None:
    grid = labelled_grid([[plain(RED), plain(GREEN)], [plain(BLUE), plain(PURPLE)]], ["a", "b"], ["0", "1"], scale=3)
    red, green, blue, purple = (box(grid, colour) for colour in (RED, GREEN, BLUE, PURPLE))
    for left, top, right, bottom in (red, green, blue, purple):
        assert (right - left, bottom - top) == (96, 96)
    assert red[0] == blue[0] < green[0] == purple[0]
    assert red[1] == green[1] < blue[1] == purple[1]
    assert grid.getpixel((0, 0)) == BACKGROUND
    assert grid.mode == "RGB"


def ink(grid: Image.Image) -> int:
    """How many pixels are dark, pictures aside."""
    pixels = np.asarray(grid).astype(int)
    return int(((pixels.sum(axis=2) < 600) & (pixels != RED).any(axis=2)).sum())


def test_labels_and_title_are_drawn() -> None:
    bare = labelled_grid([[plain(RED)]], [""], [""])
    assert ink(bare) == 0
    assert ink(labelled_grid([[plain(RED)]], ["seed 0"], [""])) > 20
    assert ink(labelled_grid([[plain(RED)]], [""], ["strength"])) > 20
    titled = labelled_grid([[plain(RED)]], [""], [""], title="a ring")
    assert ink(titled) > 20
    assert titled.height > bare.height


def test_long_labels_wrap_and_stay_inside() -> None:
    prompt = "a large red circle left of a small blue cross on a black background " * 2
    rows = [[plain(RED), plain(RED)]]
    grid = labelled_grid(rows, [prompt], [prompt, "x"], title=prompt)
    edges = [grid.crop((0, 0, grid.width, 4)), grid.crop((0, grid.height - 4, grid.width, grid.height))]
    edges += [grid.crop((0, 0, 4, grid.height)), grid.crop((grid.width - 4, 0, grid.width, grid.height))]
    assert all((np.asarray(edge) == BACKGROUND).all() for edge in edges)


def test_wrapping_keeps_every_letter_and_breaks_a_word_that_is_too_long() -> None:
    font = ImageFont.load_default(14)
    for text in ("two rings", "a" * 200, "an antidisestablishmentarianistic cross", "above\nbelow", ""):
        wrapped = _wrap(text, font, 60)
        assert "".join(wrapped.split()) == "".join(text.split())
        assert all(font.getlength(line) <= 60 for line in wrapped.splitlines())


def test_pictures_of_different_sizes_are_centred_and_transparency_shows_the_background() -> None:
    clear = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    grid = labelled_grid([[plain(RED, 40, 20)], [plain(GREEN, 20, 40)], [clear]], ["", "", ""], [""], scale=1)
    red, green = box(grid, RED), box(grid, GREEN)
    assert red[0] + red[2] == green[0] + green[2]
    assert (np.asarray(grid).sum(axis=2) > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], []), "no pictures"),
        (([[]], ["a"], []), "no pictures"),
        (([[plain(RED)], []], ["a", "b"], ["0"]), r"\[1, 0\] pictures"),
        (([[plain(RED)]], [], ["0"]), "0 row labels for 1 rows"),
        (([[plain(RED)]], ["a"], ["0", "1"]), "2 column labels for 1 columns"),
        (([[plain(RED)]], ["a"], ["0"], 0), "scale 0"),
        (([[plain(RED)]], ["a"], ["0"], 1.5), "scale 1.5"),
    ],
)
def test_faults_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labelled_grid(*arguments)
