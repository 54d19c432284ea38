"""What shows pictures refuses, before it draws, the pipelines of diffusers for videos and sounds, and no others."""

from __future__ import annotations

import inspect
import re
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
from PIL import Image

from helpers.pipeline_classes import pipeline_class, pipeline_names
from nft_pipeline.errors import GuidanceError
from nft_pipeline.sampling import check_draws_pictures, pictures_of

OUTPUT, FIELD = re.compile(r"Output\(\s*(.*)"), re.compile(r"\b(images?|frames|videos?|audios?|sounds?)=")


def returned(stock: Any) -> set[str]:
    """What a call's own source hands back by name, in the outputs that it makes."""
    call = inspect.unwrap(stock.__call__)
    made = OUTPUT.findall(inspect.getsource(call)) if inspect.isfunction(call) else []
    return set(FIELD.findall(" ".join(made)))


def is_refused(stock: Any) -> bool:
    try:
        check_draws_pictures(SimpleNamespace(_nft_stock_class=stock))
    except GuidanceError as error:
        assert "draws no pictures, and nothing else can be shown here" in str(error)
        return True
    return False


def test_a_class_is_refused_if_and_only_if_its_call_gives_no_pictures() -> None:
    stocks = [pipeline_class(name) for name in pipeline_names()]
    given = {stock: returned(stock) for stock in stocks if issubclass(stock, diffusers.DiffusionPipeline)}
    known = {stock: fields for stock, fields in given.items() if fields}
    assert len(known) > 0.9 * len(given)
    assert sum("images" in fields for fields in known.values()) > 150
    assert sum("frames" in fields for fields in known.values()) > 50
    wrong = [
        stock.__name__
        for stock, fields in given.items()
        if is_refused(stock) != (bool(fields) and not fields & {"images", "image"})
    ]
    assert wrong == []


def test_a_class_of_ones_own_goes_by_what_its_call_names() -> None:
    """A file that is run without being imported, beside the output of a video that its call does not name."""
    source = "from diffusers import StableDiffusion3Pipeline\n"
    source += "from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput\n"
    source += "class Mine(StableDiffusion3Pipeline):\n    def __call__(self, *args, **kwargs):\n        return "
    for gives, refused in (("super().__call__(*args, **kwargs)", False), ("WanPipelineOutput(frames=[])", True)):
        names: dict[str, Any] = {"__name__": "of_nobody"}
        exec(source + gives, names)
        assert is_refused(names["Mine"]) == refused


def test_pictures_are_taken_by_either_name() -> None:
    picture = Image.new("RGB", (2, 2))
    for name in ("images", "image"):
        assert pictures_of(SimpleNamespace(**{name: [picture]}), None) == [picture]
    with pytest.raises(GuidanceError, match="SimpleNamespace draws no pictures"):
        pictures_of(SimpleNamespace(frames=[[picture]]), SimpleNamespace())
