"""ACE-Step 1.5, which makes music."""

from __future__ import annotations

from typing import Any

import torch

from .. import noise_level as levels
from ..family import Family
from ..forward_call import Inputs


def _without_null_rows(inputs: Inputs, pipe: Any) -> bool:
    """Outside cfg_interval_start and cfg_interval_end the batch has no rows of the learned condition for no prompt."""
    last = inputs["encoder_hidden_states"][-1:]
    return not torch.equal(last, pipe.condition_encoder.null_condition_emb.to(last).expand_as(last))


FAMILY = Family(
    denoiser="AceStepTransformer1DModel",
    noise_level=levels.flow(),
    cfg="conditional_first",
    skips_cfg=_without_null_rows,
)
