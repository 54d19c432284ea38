"""`ocr`: is the text that the prompt asks for, in quotes, written in the picture? Read by rapidocr (PP-OCR, ONNX)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version as metadata_version
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from ..contract import Reward, RewardError, RewardInfo, RewardOutput
from ..pictures import to_arrays

REWARDS = {"ocr": "OCR"}
NEEDS = {"rapidocr": "ocr", "onnxruntime": "ocr"}
_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”|„([^“”]+)[“”]|«([^»]+)»|(?<!\w)\'([^\']+)\'(?!\w)')


class OCR(Reward):
    """1 - (edit distance between wanted and read text) / (length of the wanted text), at least 0.

    Wanted is what stands in quotes in the prompt (several quotes: one after the other); read is every line found, from
    top to bottom. Letter case, spaces and punctuation do not count. The same as the text-rendering reward of Flow-GRPO
    (2505.05470), with the plain Levenshtein distance. The models (PP-OCRv6 small, 32 MB) are inside the package.

    Details: `text`, what was read.
    """

    info = RewardInfo(name="ocr", licence="Apache-2.0", memory_gb=0.3)
    batch = 16

    def __init__(self) -> None:
        from rapidocr import RapidOCR

        self.info = replace(self.info, version=f"1 rapidocr {metadata_version('rapidocr')}")
        # Pictures up to 1280 px are read as they are; by default small ones are first enlarged, four times as slow.
        size = {"Det.limit_type": "max", "Det.limit_side_len": 1280}
        self.engine: Any = RapidOCR(params={"Global.log_level": "critical", **size})

    def score(self, images: list[Image], prompts: list[str], metadata: list[Mapping[str, Any]]) -> RewardOutput:
        """The similarity of wanted and read text, in [0, 1]."""
        wanted = [quoted(prompt) for prompt in prompts]
        read = [self._read(picture) for picture in to_arrays(images)]
        scores = [similarity(want, text) for want, text in zip(wanted, read, strict=True)]
        return RewardOutput(torch.tensor(scores), {"text": read})

    def _read(self, picture: np.ndarray) -> str:
        found = self.engine(np.ascontiguousarray(picture[:, :, ::-1]))  # it reads BGR, as OpenCV does
        return " ".join(found.txts) if found.txts else ""


def quoted(prompt: str) -> str:
    """The text in quotes of a prompt.

    Raises:
        RewardError: there is none, or nothing in it that could be read.
    """
    text = " ".join(next(filter(None, groups)) for groups in _QUOTED.findall(prompt))
    if not _plain(text):
        raise RewardError(
            f"reward 'ocr' got the prompt {prompt!r}, which has no text in quotes; expected one such as: "
            'a shop sign that says "OPEN"'
        )
    return text


def similarity(wanted: str, read: str) -> float:
    """1 - distance / length of `wanted`, in [0, 1], on letters and digits alone."""
    want, got = _plain(wanted), _plain(read)
    return max(0.0, 1.0 - edit_distance(want, got) / len(want))


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's: the fewest insertions, deletions and replacements of a character that turn `a` into `b`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def _plain(text: str) -> str:
    return "".join(character for character in text.casefold() if character.isalnum())
