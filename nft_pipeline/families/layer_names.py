"""What other tools call the layers of a denoiser: for reading LoRA files that they wrote, and writing ones they read.

Diffusers' own names of layers, with any of the usual prefixes, need no facts (`nft_pipeline.adapters.foreign.rename`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn


@dataclass(frozen=True)
class Pieces:
    """The modules of diffusers that hold one layer of an original checkpoint.

    Args:
        modules: their names. The layer's output features are divided among them in this order, in equal parts.
        swapped: whether the two halves of the output features stand in the other order; for a single module.
    """

    modules: tuple[str, ...]
    swapped: bool = False


@dataclass(frozen=True)
class LayerNames:
    """Names of layers that are not diffusers' own.

    Args:
        kohya_prefix: what files of kohya's kind have before diffusers' name of a layer, whose dots are underscores
            there: "lora_unet_" in kohya's own tools, "lora_transformer_" in OneTrainer. Default None: no tool is known
            to read such a file, and none is written.
        pipeline: the pipeline class of diffusers whose `lora_state_dict` renames layers of the original checkpoints
            where only the denoiser is at hand; where a pipeline is loaded, its own class does it. Default None: there
            is none.
        spelling: how `lora_state_dict` expects the names: "as_written" (default), as they stand in the file, or
            "kohya", with "lora_unet_" before them and underscores for dots.
        config_argument: the argument of `lora_state_dict` that takes the denoiser's config; "" (default) for none.
        original: for a family whose original names diffusers does not convert: given a layer's original name, without
            prefix and with underscores for dots, and the denoiser, the modules of diffusers that hold it, or None for a
            name it does not know. It replaces `lora_state_dict`. Default None.
    """

    kohya_prefix: str | None = None
    pipeline: str | None = None
    spelling: Literal["as_written", "kohya"] = "as_written"
    config_argument: str = ""
    original: Callable[[str, nn.Module], Pieces | None] | None = None
