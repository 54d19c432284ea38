"""Where the pictures of the emoji world come from: four packages of the npm registry, fetched when a model is trained.

    Noto (Google), Apache-2.0          style "shaded"
    Twemoji (Twitter), CC-BY-4.0       style "flat"
    Fluent (Microsoft), MIT            style "3d"
    emojibase-data, MIT                what each picture shows, in words
    four fonts of fontsource, OFL      the letters on signs

The pictures themselves are not part of this repository; the model that was trained on them is.
"""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import TrainingError

SIZE = 64  # pixels per side
MARGIN = 4  # pixels of background on every side of a thing
PACKAGES = {
    "emoji-datasource-google": "16.0.0",
    "emoji-datasource-twitter": "16.0.0",
    "@lobehub/fluent-emoji-3d": "1.1.0",
    "emojibase-data": "17.0.0",
    "@fontsource/inter": "5.3.0",
    "@fontsource/roboto-slab": "5.3.0",
    "@fontsource/fredoka": "5.3.0",
    "@fontsource/rubik": "5.3.0",
}
STYLES = {
    "shaded": "emoji-datasource-google/img/google/64/{}.png",
    "flat": "emoji-datasource-twitter/img/twitter/64/{}.png",
    "3d": "@lobehub/fluent-emoji-3d/assets/{}.webp",
}
KINDS: dict[str, tuple[int, tuple[int, ...]]] = {
    "face": (0, (*range(13),)),
    "heart": (0, (14,)),
    "animal": (3, (*range(34, 40),)),
    "plant": (3, (40, 41)),
    "food": (4, (*range(42, 49),)),
    "building": (5, (51,)),
    "vehicle": (5, (54, 55, 56)),
    "weather": (5, (59,)),
    "game": (6, (62, 63)),
    "clothes": (7, (65,)),
    "instrument": (7, (68,)),
    "tool": (7, (78,)),
}
"""What is drawn: for each kind a group of Unicode's emoji list and its subgroups.

People, flags, arrows and clock faces stay out.
"""


@dataclass(frozen=True)
class Thing:
    """Something that is drawn in every style: its name, its kind (a key of `KINDS`) and its code point."""

    name: str
    kind: str
    code: str


def fetch(folder: Path) -> Path:
    """`folder` with every package of `PACKAGES` unpacked below its name; what is there is not fetched again.

    Raises:
        TrainingError: npm is not installed or cannot reach its registry.
    """
    for name, version in PACKAGES.items():
        home = folder / name
        if (home / "package.json").is_file():
            continue
        home.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", f"{name}@{version}", "--silent", "--pack-destination", str(home)]
        try:
            packed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
        except (OSError, subprocess.CalledProcessError, IndexError) as error:
            reason = getattr(error, "stderr", None) or error
            raise TrainingError(
                f"the package {name} {version} could not be fetched with npm: {reason}. The emoji world's pictures "
                "come from npm's registry: install Node.js (it brings npm) and go online, or unpack the package's "
                f"archive into {home} yourself"
            ) from error
        with tarfile.open(home / packed) as archive:
            for member in archive.getmembers():
                member.name = member.name.partition("/")[2]
            archive.extractall(home, filter="data", members=[one for one in archive.getmembers() if one.name])
        (home / packed).unlink()
    return folder


def things(folder: Path) -> list[Thing]:
    """Everything that all three styles have a picture of and one or two words name, in Unicode's order."""
    kind_of = {(group, subgroup): kind for kind, (group, subgroups) in KINDS.items() for subgroup in subgroups}
    chosen = []
    for entry in json.loads((folder / "emojibase-data/en/data.json").read_text(encoding="utf-8")):
        kind = kind_of.get((entry.get("group"), entry.get("subgroup")))
        name = entry["label"].lower().replace("-", " ")
        if kind is None or not re.fullmatch(r"[a-z]+( [a-z]+)?", name):
            continue
        if all(_file(folder, style, entry["hexcode"]) for style in STYLES):
            chosen.append(Thing(name, kind, entry["hexcode"]))
    return chosen


def read(folder: Path, thing: Thing, style: str) -> np.ndarray:
    """The picture of a thing in a style, with a margin: uint8 (64, 64, 4), the last channel its opacity."""
    file = _file(folder, style, thing.code)
    if file is None:
        raise TrainingError(f"there is no picture of {thing.name!r} in the style {style!r} below {folder}")
    with Image.open(file) as picture:
        inner = SIZE - 2 * MARGIN
        return np.pad(
            np.asarray(picture.convert("RGBA").resize((inner, inner), Image.Resampling.LANCZOS)),
            ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)),
        )


def font_files(folder: Path) -> list[Path]:
    """The bold faces that signs are written in, one for each font package."""
    names = [name for name in PACKAGES if name.startswith("@fontsource/")]
    return [folder / name / "files" / f"{name.partition('/')[2]}-latin-700-normal.woff" for name in names]


def _file(folder: Path, style: str, code: str) -> Path | None:
    lower = code.lower()
    for spelled in (lower, f"{lower}-fe0f", lower.replace("-fe0f", "")):
        file = folder / STYLES[style].format(spelled)
        if file.is_file():
            return file
    return None
