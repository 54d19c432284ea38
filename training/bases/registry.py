"""Which pipelines can be trained on, and the trainer's view of one."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import TrainingError
from .base import TrainBase
from .frames import QwenImageBase, WanBase
from .transformers import Flux2Base, Flux2KleinBase, FluxBase, SanaBase, SD3Base, ZImageBase
from .unet import SDBase, SDXLBase

TRAINABLE: dict[str, type[TrainBase]] = {
    "StableDiffusion3Pipeline": SD3Base,
    "StableDiffusionPipeline": SDBase,
    "StableDiffusionXLPipeline": SDXLBase,
    "FluxPipeline": FluxBase,
    "Flux2Pipeline": Flux2Base,
    "Flux2KleinPipeline": Flux2KleinBase,
    "QwenImagePipeline": QwenImageBase,
    "ZImagePipeline": ZImageBase,
    "SanaPipeline": SanaBase,
    "WanPipeline": WanBase,
}


def train_base(
    pipe: Any,
    call: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> TrainBase:
    """The trainer's view of a pipeline; of a guided one too, for sampling from it.

    Args:
        pipe, call, dtype, device: as `TrainBase`.

    Raises:
        TrainingError: a pipeline that cannot be trained on, which may still be guided.
    """
    name = type(pipe).__name__
    known = [kind.__name__ for kind in type(pipe).__mro__ if kind.__name__ in TRAINABLE]
    if not known:
        raise TrainingError(
            f"the base model is a {name}; the trainer supports {', '.join(TRAINABLE)} so far. Set base_model to one of "
            "these; adapters trained elsewhere for other families can be used for sampling."
        )
    return TRAINABLE[known[0]](pipe, call, dtype, device)
