"""Lets a CUDA build of torchvision be imported beside a CPU build of torch, without its compiled operators.

Package indexes hand out CUDA builds of torchvision for Linux. Beside a CPU torch its compiled part cannot be loaded
(torchvision says nothing), then its Python part registers shapes for two operators that are therefore missing, and
`import torchvision` ends in "operator torchvision::nms does not exist". With it fail transformers, peft and diffusers,
which import torchvision where it is installed. Declaring the two operators is enough: transforms, which is all that
those libraries use, are written in Python.

`watch` does this at the moment torchvision is first imported, by whomever, and only where its compiled part does not
load. Until then it costs nothing; on a healthy machine it changes nothing. It adds to `sys.meta_path`, so the library
never calls it: our commands do, their worker processes, and the tests. For all other programs of an environment it is
the environment that must be mended:

    python -m nft_pipeline.torchvision_repair      (the last step of the Makefile's installation)

does nothing where torchvision can be imported or is not installed. Where it cannot, it puts a copy of this file into
site-packages, with a .pth file that starts `watch` in every Python of this environment, and prints a line that says so.
A copy, since the package itself must not be imported before a program has said where it is to come from. Where that
does not help, or is no longer needed when the command is given again, the two files are removed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

COPY = "diffusion_nft_torchvision"  # in site-packages: .py and .pth
_WITHOUT_WATCH = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != '_Watch']; "

_kept: list[Any] = []  # a torch.library.Library takes its operators with it when it is collected


class _Watch(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None or spec.origin is None:
            return None
        folder, execute = Path(spec.origin).parent, spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            declare_missing_operators(folder)
            execute(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def watch() -> None:
    """Look out for torchvision's import; does nothing when it has happened, or when it is watched already."""
    if "torchvision" not in sys.modules and not any(type(finder).__name__ == "_Watch" for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


def fits_torch() -> bool:
    """Whether the compiled part of the installed torchvision loads beside this torch; True if there is none."""
    spec = importlib.util.find_spec("torchvision")
    return spec is None or spec.origin is None or _loads(Path(spec.origin).parent)


def declare_missing_operators(folder: Path) -> bool:
    """Declare nms and qnms if the compiled part of the torchvision in `folder` does not load.

    Returns:
        True if they were missing and are now declared (calling them still fails: they have no implementation).
    """
    import torch

    if _loads(folder):
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)
    return True


def _loads(folder: Path) -> bool:
    import torch

    compiled = next((file for pattern in ("_C*.so", "_C*.pyd") for file in folder.glob(pattern)), None)
    if compiled is None or hasattr(torch.ops.torchvision, "nms"):
        return True
    try:
        torch.ops.load_library(str(compiled))
    except OSError:
        return False
    return True


def mend_environment() -> str:
    """Make torchvision importable in every Python of this environment.

    Returns:
        What was done, in a sentence; "" where nothing was needed.

    Raises:
        OSError: site-packages cannot be written.
    """
    import sysconfig

    packages = Path(sysconfig.get_path("purelib"))
    code, start = packages / f"{COPY}.py", packages / f"{COPY}.pth"
    if importlib.util.find_spec("torchvision") is None or _runs(_WITHOUT_WATCH + "import torchvision"):
        _remove(start, code)
        return ""
    if start.exists() and _runs("import torchvision"):  # mended by an earlier run
        return ""
    code.write_bytes(Path(__file__).read_bytes())
    start.write_text(f"import {COPY}; {COPY}.watch()\n")
    if not _runs("import torchvision"):
        _remove(start, code)
        return "torchvision cannot be imported, and with it diffusers and transformers; see: diffusion-nft env"
    return f"torchvision is made for another build of torch; {COPY}.pth in site-packages lets it be imported"


def _runs(code: str) -> bool:
    import subprocess

    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def _remove(*files: Path) -> None:
    for file in files:
        if file.exists():  # asked first: a read-only disk refuses to unlink even what is not there
            file.unlink()


if __name__ == "__main__":
    outcome = mend_environment()
    if outcome:
        print(outcome)
