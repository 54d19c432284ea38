"""The wheel: every file of every room, under nft_pipeline, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email import message_from_string
from pathlib import Path

import pytest

from helpers.repository import ROOMS, ROOT, repository_files

MAX_SHIPPED_BYTES = 45_000_000  # more than half of it is the emoji model


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """Built from a copy, so that no build folder of yesterday gets in and none is left behind."""
    folder = tmp_path_factory.mktemp("wheel")
    source, out = folder / "source", folder / "out"
    for path in repository_files():
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    out.mkdir()
    # The hook every front end calls (pip, build), without the environment they would download for it.
    hook = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    command = [sys.executable, "-W", "error::DeprecationWarning", "-c", hook, str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    with zipfile.ZipFile(built) as archive:
        yield archive


def expected_files() -> set[str]:
    """Where every file of the rooms, code and data, should be in the wheel."""
    parts = [path.relative_to(ROOT).parts for path in repository_files()]
    return {"/".join([*ROOMS[room].split("."), *rest]) for room, *rest in parts if room in ROOMS}


def test_it_holds_the_rooms_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = expected_files()
    assert not expected - inside, f"missing: {sorted(expected - inside)}; see [tool.setuptools] in pyproject.toml"
    assert not inside - expected, f"not ours to ship: {sorted(inside - expected)}"


def test_its_only_top_level_name_is_nft_pipeline(wheel: zipfile.ZipFile) -> None:
    assert {name.partition("/")[0] for name in wheel.namelist() if ".dist-info/" not in name} == {"nft_pipeline"}
    (top_level,) = [name for name in wheel.namelist() if name.endswith("/top_level.txt")]
    assert wheel.read(top_level).decode().split() == ["nft_pipeline"]


def test_no_test_is_shipped(wheel: zipfile.ZipFile) -> None:
    assert not [name for name in wheel.namelist() if re.search(r"(^|/)(tests?|conftest)[/.]", name)]


def test_it_installs_the_command_and_says_its_licence(wheel: zipfile.ZipFile) -> None:
    (entries,) = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
    assert "diffusion-nft = nft_pipeline.cli:main" in wheel.read(entries).decode()
    (metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    fields = message_from_string(wheel.read(metadata).decode())
    assert fields["License-Expression"] == "Apache-2.0"
    assert [name for name in wheel.namelist() if name.endswith(".dist-info/licenses/LICENSE")]


def test_a_plain_install_is_light(wheel: zipfile.ZipFile) -> None:
    (metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    requires = message_from_string(wheel.read(metadata).decode()).get_all("Requires-Dist") or []
    plain = {re.split(r"[ <>=!~;\[]", line)[0] for line in requires if "extra ==" not in line}
    # torchvision must come by constraint alone: left to the resolver it replaces torch by another build.
    assert not plain & {"torchvision", "scipy", "matplotlib", "pytest", "image-reward", "scikit-learn"}


def test_what_ships_is_small(wheel: zipfile.ZipFile) -> None:
    data = sum(info.file_size for info in wheel.infolist() if Path(info.filename).suffix == ".safetensors")
    size = sum(info.compress_size for info in wheel.infolist())
    print(f"wheel: {size / 1e6:.2f} MB packed, of it weights {data / 1e6:.2f} MB unpacked")
    assert size <= MAX_SHIPPED_BYTES
