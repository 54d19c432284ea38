"""Which pipelines can be trained on, and the trainer's view of one.

To add a family, add one file to training/bases/known and a preset to training/presets.
"""

from __future__ import annotations

from typing import Any

import torch

from nft_pipeline.files.discovery import classes_in, modules_of

from ..errors import TrainingError
from . import known
from .base import TrainBase

# By the name of the pipeline's class.
TRAINABLE: dict[str, type[TrainBase]] = {
    kind.pipeline_class: kind
    for module in modules_of(known)
    for kind in classes_in(module, TrainBase)
    if "pipeline_class" in vars(kind)
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
