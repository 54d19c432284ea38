"""Reward guidance for diffusion models that can be dialled at inference time.

    from nft_pipeline import DiffusionNFTPipeline
    pipe = DiffusionNFTPipeline.from_pretrained("shapes", nft_adapter="shapes-warm")
    image = pipe("a circle left of a cross", nft_strength=1.0).images[0]

Names are imported when first used: `import nft_pipeline` loads neither torch nor diffusers nor transformers. The
maths is in `nft_pipeline.guidance`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ != "nft_pipeline":
    raise ImportError(f"this package is called nft_pipeline and was imported as {__name__}: import it by its own name")

# A wheel has the rooms training, comfy_nodes and hub_cards inside this folder. In a checkout they stand beside it, and
# this line makes them the checkout's own whichever way it got onto the path: PYTHONPATH, a worktree, a second clone.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "comfy_nodes").is_dir():
    __path__.append(str(_checkout))

if TYPE_CHECKING:
    from .adapter import Adapter as Adapter
    from .adapter import AdapterConfig as AdapterConfig
    from .adapter import read_adapter as read_adapter
    from .adapter import write_adapter as write_adapter
    from .adapters.alpha_head import AlphaHead as AlphaHead
    from .adapters.alpha_head import AlphaHeadConfig as AlphaHeadConfig
    from .dial.promise import Promise as Promise
    from .dial.promise import promise as promise
    from .engine.stats import NFTStats as NFTStats
    from .errors import AdapterError as AdapterError
    from .errors import FamilyError as FamilyError
    from .errors import GuidanceError as GuidanceError
    from .guider import DiffusionNFTGuidance as DiffusionNFTGuidance
    from .pipeline import DiffusionNFTPipeline as DiffusionNFTPipeline

__version__ = "0.1.0"

_HOME = {
    "Adapter": "adapter",
    "AdapterConfig": "adapter",
    "AdapterError": "errors",
    "AlphaHead": "adapters.alpha_head",
    "AlphaHeadConfig": "adapters.alpha_head",
    "DiffusionNFTGuidance": "guider",
    "DiffusionNFTPipeline": "pipeline",
    "FamilyError": "errors",
    "GuidanceError": "errors",
    "NFTStats": "engine.stats",
    "Promise": "dial.promise",
    "promise": "dial.promise",
    "read_adapter": "adapter",
    "write_adapter": "adapter",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
