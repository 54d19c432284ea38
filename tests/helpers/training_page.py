"""Tables in docs/training.md: models that can be trained, presets by their memory, and the authors' config.

The first is made from the classes in training/bases/known, the second from the first line of each preset, and the third
from training/authors.py.
"""

from __future__ import annotations

import json
import math
import re

from helpers.made import with_parts
from helpers.repository import ROOT
from nft_pipeline.training.authors import MAP, Theirs
from nft_pipeline.training.bases.registry import TRAINABLE

PAGE = ROOT / "docs" / "training.md"
PRESETS = ROOT / "training" / "presets"


def models() -> str:
    """The table of models, in the order of their names."""
    bases = sorted(TRAINABLE.values(), key=lambda base: base.model.lower())
    rows = [f"| {base.model} | `{base.pipeline_class}` | {base.note} |\n" for base in bases]
    return "".join(["| model | pipeline | what to know |\n|---|---|---|\n", *rows])


def presets() -> str:
    """The table of presets, the smallest memory first; last those whose memory nobody computed."""
    names: dict[float, list[str]] = {}
    for path in sorted(PRESETS.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if "\npreset: large_model\n" not in text:
            continue
        first_line = text.partition("\n")[0]
        memory, bits = re.search(r"for (\d+) GB", first_line), re.search(r"in (\d) bits", first_line)
        size = int(memory[1]) if memory else math.inf
        names.setdefault(size, []).append(path.stem + (f" ({bits[1]} bits)" if bits else ""))
    sizes = {size: f"{size} GB" if math.isfinite(size) else "not computed" for size in sorted(names)}
    rows = [f"| {sizes[size]} | {', '.join(names[size])} |\n" for size in sizes]
    return "".join(["| for | presets |\n|---|---|\n", *rows])


def authors() -> str:
    """The config of DiffusionNFT's authors, key by key, and where each is here."""
    rows = [
        f"| {', '.join(f'`{key}`' for key in one.key.split(', '))} | {one.value} | {_ours(one)} | {one.note} |\n"
        for one in MAP
    ]
    return "".join(["| theirs | its value | here | |\n|---|---|---|---|\n", *rows])


def _ours(one: Theirs) -> str:
    if not one.setting:
        return ""
    value = json.dumps(one.ours) if isinstance(one.ours, bool | int | float) else one.ours
    return f"`{one.setting}: {value}`" if isinstance(value, str) else f"`{one.setting}`"


def page() -> str:
    """The page as it should be: its text as it is, with the tables made anew."""
    return with_parts(PAGE, models=models(), presets=presets(), authors=authors())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
