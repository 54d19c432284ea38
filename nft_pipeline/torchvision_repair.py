"""Lets a CUDA build of torchvision be imported beside a CPU build of torch, without its compiled operators.

Package indexes hand out CUDA builds of torchvision for Linux. Beside a CPU torch its compiled part cannot be loaded
(torchvision says nothing), then its Python part registers shapes for two operators that are therefore missing, and
`import torchvision` ends in "operator torchvision::nms does not exist". With it fail transformers, peft and diffusers,
which import torchvision where it is installed. Declaring the two operators is enough: transforms, which is all that
those libraries use, are written in Python.

`watch` does this at the moment torchvision is first imported, by whomever, and only where its compiled part does not
load. Until then it costs nothing; on a healthy machine it changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

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


def declare_missing_operators(folder: Path) -> bool:
    """Declare nms and qnms if the compiled part of the torchvision in `folder` does not load.

    Returns:
        True if they were missing and are now declared (calling them still fails: they have no implementation).
    """
    import torch

    compiled = next((file for pattern in ("_C*.so", "_C*.pyd") for file in folder.glob(pattern)), None)
    if compiled is None or hasattr(torch.ops.torchvision, "nms"):
        return False
    try:
        torch.ops.load_library(str(compiled))
        return False
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
        return True
