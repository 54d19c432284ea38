"""Tokens of a denoiser whose sequence is split over processes (diffusers' context parallelism), brought together.

Each process sees its own share of a picture's tokens, and alpha belongs to the whole picture. Read from the shares it
would differ between the processes, and so would their velocities, of which each makes a part of the next latents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FamilyError


def token_gatherer(denoiser: nn.Module) -> Callable[[Tensor], Tensor]:
    """Makes the tokens of all processes, (rows, N, C), out of those of this one; for a denoiser that is not split, they
    are the same.

    Args:
        denoiser: the module, not its compiled wrapper.
    """
    config: Any = getattr(getattr(denoiser, "_parallel_config", None), "context_parallel_config", None)
    if config is None:
        return lambda tokens: tokens
    group = config._flattened_mesh.get_group()
    return lambda tokens: _gathered(tokens, group)


def refuse_split_weights(denoiser: nn.Module) -> None:
    """Raise FamilyError for a denoiser whose weights are split over processes (tensor parallelism), as no LoRA is."""
    if getattr(getattr(denoiser, "_parallel_config", None), "tensor_parallel_config", None) is not None:
        raise FamilyError(
            f"the weights of this {type(denoiser).__name__} are split over processes by tensor parallelism, and a LoRA "
            "cannot be. Load the model whole and split its tokens, with "
            "enable_parallelism(config=ContextParallelConfig(...))."
        )


def _gathered(tokens: Tensor, group: Any) -> Tensor:
    processes = torch.distributed.get_world_size(group)
    lengths = [torch.zeros(1, dtype=torch.int64, device=tokens.device) for _ in range(processes)]
    torch.distributed.all_gather(lengths, torch.full_like(lengths[0], tokens.shape[1]), group=group)
    sizes = [int(length) for length in lengths]
    mine = F.pad(tokens, (0, 0, 0, max(sizes) - tokens.shape[1])).contiguous()
    parts = [torch.empty_like(mine) for _ in range(processes)]
    torch.distributed.all_gather(parts, mine, group=group)
    if all(torch.equal(part, parts[0]) for part in parts[1:]):  # at this module the sequence is not split
        return tokens
    return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)
