"""A torchvision whose compiled part does not load, as a CUDA build beside a CPU torch: our programs import it, an
environment can be mended, and `import nft_pipeline` alone changes nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.repository import ROOT
from nft_pipeline.torchvision_repair import COPY

# What torchvision itself does on import: load the compiled part if it can, then describe an operator of it.
BROKEN = """
import torch
try:
    torch.ops.load_library(__path__[0] + "/_C.so")
except OSError:
    pass

@torch.library.register_fake("torchvision::nms")
def meta_nms(dets, scores, iou_threshold):
    return dets

transforms = "usable"
"""


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, str]:
    """An environment in which torchvision is such a one."""
    write_broken(tmp_path)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}


def write_broken(folder: Path) -> None:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(BROKEN)
    (package / "_C.so").write_bytes(b"needs libtorch_cuda.so")


def python(code: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=env)


# The environment that runs the tests may be mended already; these begin as in one that is not.
PLAIN = "import sys; sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != '_Watch']\n"
SERVED = {"rewards": {"jpeg_size": 1.0}, "general": {}, "limits": {}}
SERVER = "nft_pipeline.training.rewards.server.serve"


def test_importing_the_package_alone_mends_nothing(broken: dict[str, str]) -> None:
    done = python(PLAIN + "import nft_pipeline, torchvision", broken)
    assert "operator torchvision::nms does not exist" in done.stderr


@pytest.mark.parametrize(
    "start",
    [
        "from nft_pipeline.torchvision_repair import watch; watch()",
        "from nft_pipeline.cli import main; main(['--version'])",
        f"from {SERVER} import app_from_environment; app_from_environment()",  # in each worker process of a server
    ],
)
def test_it_can_be_imported_once_the_repair_is_started(start: str, broken: dict[str, str]) -> None:
    if SERVER in start:
        pytest.importorskip("fastapi")
        broken = {**broken, "DIFFUSION_NFT_REWARD_SERVER": json.dumps(SERVED)}
    code = f"{PLAIN}{start}\nimport importlib.util, torch; importlib.util.find_spec('torchvision')\n"
    code += "print(hasattr(torch.ops.torchvision, 'nms'))  # nothing is declared before it is imported\n"
    done = python(code + "import torchvision; print(torchvision.transforms)", broken)
    assert done.stdout.split()[-2:] == ["False", "usable"], done.stderr


Inside = Callable[..., subprocess.CompletedProcess[str]]
MEND = ("-m", "nft_pipeline.torchvision_repair")


@pytest.fixture
def environment(tmp_path: Path) -> tuple[Path, Inside]:
    """The site-packages of an environment with such a torchvision, and a function that runs its Python."""

    def inside(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([python_inside, *arguments], capture_output=True, text=True, timeout=300, env=env)

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True, timeout=300)
    folder = "Scripts" if os.name == "nt" else "bin"
    python_inside, env = str(tmp_path / folder / "python"), {**os.environ, "PYTHONPATH": str(ROOT)}
    packages = Path(inside("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    assert packages.is_relative_to(tmp_path)
    (packages / "outer.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    write_broken(packages)
    return packages, inside


@pytest.mark.long
def test_an_environment_is_mended_for_every_program_and_env_says_what_to_install(
    environment: tuple[Path, Inside],
) -> None:
    packages, inside = environment
    description = packages / "torchvision-0.0.1.dist-info" / "METADATA"
    description.parent.mkdir()
    description.write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.0.1\n")

    assert inside("-c", "import torchvision").returncode != 0
    assert inside(*MEND).stdout.startswith("torchvision is made for another build of torch; ")
    done = inside("-c", "import sys; print('nft_pipeline' in sys.modules); import torchvision")
    assert done.returncode == 0 and done.stdout.strip() == "False", done.stderr
    assert inside(*MEND).stdout == ""  # nothing is left to do
    facts = json.loads(inside("-m", "nft_pipeline", "env", "--json").stdout)
    assert facts["torchvision"].startswith("0.0.1 does not load beside torch ")
    assert "pip install --force-reinstall --no-deps torchvision==0.0.1 --index-url https://" in facts["torchvision"]

    assert len(list(packages.glob(f"{COPY}.*"))) == 2
    (packages / "torchvision" / "__init__.py").write_text("")  # as if one that fits had been installed
    done = inside(*MEND)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert not list(packages.glob(f"{COPY}.*"))


def test_an_environment_that_cannot_be_mended_is_left_as_it_was(environment: tuple[Path, Inside]) -> None:
    packages, inside = environment
    (packages / "torchvision" / "__init__.py").write_text("raise ImportError('another fault')")
    assert inside(*MEND).stdout.startswith("torchvision cannot be imported, and with it diffusers")
    assert not list(packages.glob(f"{COPY}.*"))


def test_the_installed_one_and_those_that_use_it_can_be_imported() -> None:
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed: pip install -c constraints.txt '.[image-reward]'")
    done = python(
        "from nft_pipeline.torchvision_repair import watch; watch()\n"
        "import torchvision.transforms.v2; from transformers import CLIPModel; print('fine')"
    )
    assert done.stdout.strip() == "fine", done.stderr
