"""One run over several processes, as `accelerate launch` or torchrun start them: who am I, and sums over all.

Every process draws the same batch and computes its share of it; gradients are summed. So the result does not depend on
how many processes there are, up to the order of sums. LoRA and head are small: summing their gradients costs little.
Online, the batches of a round are sampled and scored in turns, one a process, and every process gets all of them.

Where the base model does not fit one GPU, it is split: training/run/sharding.py. Files are read from one disk by all
processes and written by the first.

This is torch.distributed and not accelerate's PartialState and reduce, which were tried. Their sums are the same bit
for bit. But PartialState joins the group as soon as its rank is asked for, and `check` asks without joining; on CPUs it
changes the number of threads, and with it the order of sums; and reduce sums the gradients one tensor at a time, which
took 4 to 10 times as long as all of them at once (384 tensors, two processes, gloo).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor, distributed
from torch.nn import Parameter


def env_flag(name: str) -> bool:
    """Whether the launcher set this variable."""
    return os.environ.get(name, "false").lower() in ("true", "1")


def start() -> None:
    """Join the group if this process was launched as one of several; the backend is gloo on CPUs, nccl on GPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def rank() -> int:
    """0 for the process that writes files, prints and saves."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    """How many processes the run has."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def wait() -> None:
    """Until all processes are here."""
    if distributed.is_initialized():
        distributed.barrier()


def summed(values: Tensor) -> Tensor:
    """The sum over the processes; exact where all but one have zeros, and NaN stays."""
    if count() == 1:
        return values
    whole = values.to("cuda" if torch.cuda.is_available() else "cpu")
    distributed.all_reduce(whole)
    return whole.to(values.device)


def sum_numbers(numbers: dict[str, float]) -> dict[str, float]:
    """Sums over the processes."""
    values = summed(torch.tensor(list(numbers.values()), dtype=torch.float64))
    return dict(zip(numbers, values.tolist(), strict=True))


def any_true(flag: bool) -> bool:
    """Whether the flag is set in any process: all then do the same."""
    return bool(summed(torch.tensor(float(flag))) > 0)


def sum_gradients(parameters: Iterable[Parameter]) -> None:
    """Replace every gradient by its sum over the processes; none counts as zero."""
    if count() == 1:
        return
    some = [parameter for parameter in parameters if parameter.requires_grad]
    flat = summed(torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in some]))
    for parameter, total in zip(some, flat.split([p.numel() for p in some]), strict=True):
        parameter.grad = total.view_as(parameter).clone()
