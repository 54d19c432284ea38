"""`diffusion-nft env`: versions and device, fit to be pasted into a public bug report (no paths, names or tokens)."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
from importlib import metadata
from typing import Any

from ..torchvision_repair import fits_torch

HELP = """\
Print the versions of what matters and the device that would be used. Paste it into a bug report: it holds no paths,
no user or machine names and no tokens."""

PACKAGES = (
    "diffusion-nft",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "safetensors",
    "huggingface-hub",
    "tokenizers",
    "numpy",
    "pillow",
)
TRAIN_PACKAGES = ("scipy", "matplotlib", "pyyaml")
MISSING = "not installed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft env`."""
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts (default: a table)")


def run(args: argparse.Namespace) -> int:
    """Print what `describe` finds."""
    facts = describe()
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")
    return 0


def describe() -> dict[str, str]:
    """Facts by name, in the order they are printed."""
    facts = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    facts |= {name: _version(name) for name in PACKAGES}
    facts |= {f"{name} (train)": _version(name) for name in TRAIN_PACKAGES}
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # OSError: a shared library of a CUDA build is missing
        return facts | {"device": f"unknown, torch does not import ({type(error).__name__})"}
    facts["torch"] = str(torch.__version__)  # which names the build, +cu130 or +cpu, where the package's may not
    return facts | _torchvision(torch) | _devices(torch)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return MISSING


def _torchvision(torch: Any) -> dict[str, str]:
    """Nothing here uses it, but where it is installed diffusers and transformers import it and fail with it."""
    version = _version("torchvision")
    if version == MISSING:
        return {}
    if fits_torch():
        return {"torchvision": version}
    build = f"cu{torch.version.cuda.replace('.', '')}" if torch.version.cuda else "cpu"
    plain = version.partition("+")[0]
    advice = f"pip install --force-reinstall --no-deps torchvision=={plain} --index-url https://download.pytorch.org/whl/{build}"
    return {
        "torchvision": f"{version} does not load beside torch {torch.__version__} (made for another build of it), and "
        f"`import diffusers` may fail outside these commands: {advice}"
    }


def _devices(torch: Any) -> dict[str, str]:
    facts: dict[str, str] = {}
    if torch.cuda.is_available():
        facts["device"] = "cuda"
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            facts[f"cuda:{index}"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB, sm_{card.major}{card.minor}"
        facts["cuda runtime"] = str(torch.version.hip or torch.version.cuda)
        facts["bfloat16"] = "yes" if torch.cuda.is_bf16_supported(including_emulation=False) else "no, or emulated"
    elif torch.backends.mps.is_available():
        facts["device"] = "mps"
        facts["bfloat16"] = _bfloat16_works(torch, "mps")
    else:
        facts["device"] = f"cpu, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
        facts["bfloat16"] = f"{_bfloat16_works(torch, 'cpu')} (on most CPUs slower than float32)"
    return facts


def _bfloat16_works(torch: Any, device: str) -> str:
    try:
        (
            torch.ones(8, 8, dtype=torch.bfloat16, device=device)
            @ torch.ones(8, 8, dtype=torch.bfloat16, device=device)
        ).sum()
    except (RuntimeError, TypeError) as error:
        return f"no ({type(error).__name__})"
    return "yes"
