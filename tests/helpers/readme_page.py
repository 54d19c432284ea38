"""The README's count of pipelines and families, made from the zoo of the tests and the registry."""

from __future__ import annotations

import re

from helpers.repository import ROOT
from helpers.zoo import CASES
from nft_pipeline.families.registry import FAMILIES

PAGE = ROOT / "README.md"


def page() -> str:
    """The page as it should be: its text as it is, with these two numbers made anew."""
    pipelines = {name.partition(",")[0] for name in CASES}
    counts = f"{len(pipelines)} pipeline classes over {len(FAMILIES)} families"
    return re.sub(r"\d+ pipeline classes over \d+ families", counts, PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
