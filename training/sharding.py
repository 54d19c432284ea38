"""The frozen base model split over the GPUs of a run (FSDP). LoRA, head and optimiser stay whole in every process.

    accelerate launch --use_fsdp --fsdp_version 2 --num_processes 4 -m nft_pipeline train my_run.yaml

A forward gathers the weights of one block after another from all processes and lets them go again, so all of them have
to run forwards together. In a training step they do: each has an equal share of the batch. Where the first process
works alone (a pool, a sample grid, a sweep) it says so before each of its forwards, and the others run one along.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from . import processes
from .base_model import TrainBase, TrainingError, rows_of
from .config import TrainConfig

T = TypeVar("T")


def is_asked_for() -> bool:
    """Whether accelerate launched this process for FSDP, beside others."""
    return processes.env_flag("ACCELERATE_USE_FSDP") and int(os.environ.get("WORLD_SIZE", "1")) > 1


def check_sharding(config: TrainConfig) -> None:
    """Whether a run with these settings can have its base model split, if that is asked for.

    Raises:
        TrainingError: the processes would not run equally many forwards, or the weights are quantised or offloaded.
    """
    if not is_asked_for():
        return
    count = int(os.environ["WORLD_SIZE"])
    sizes = {"batch": config.batch, **({"head_batch": config.head_batch} if config.kind == "positive" else {})}
    for name, size in sizes.items():
        if size % count:
            raise TrainingError(
                f"{name} is {size} and FSDP has {count} processes, which must have equal shares. Set {name} to a "
                f"multiple of {count}, such as {-(-size // count) * count}"
            )
    if config.quantise != "none":
        raise TrainingError(
            f"quantise is {config.quantise!r} under FSDP, which splits weights that are not quantised. Leave one of "
            "them out"
        )
    if processes.env_flag("FSDP_OFFLOAD_PARAMS"):
        raise TrainingError(
            "FSDP_OFFLOAD_PARAMS is set: the split weights stay on the GPUs here. Leave fsdp_offload_params out of the "
            "launcher's settings, and use more processes where memory is short"
        )


class Sharding:
    """Splits a run's base model if that is asked for, and keeps the processes together.

    Args:
        base: with text encoders and without LoRAs; its denoiser is on the CPU, and on `device` afterwards.
        device: of this process.
        say: gets a line if it is split.
    """

    def __init__(self, base: TrainBase, device: torch.device, say: Callable[[str], None]) -> None:
        self.base, self.is_split = base, is_asked_for()
        if self.is_split:
            split(base.denoiser, device)
            say(f"base model split over {processes.count()} processes by FSDP")
            self._any = base.encode_prompts([""])  # conditions, for forwards whose output nobody reads

    def first(self, work: Callable[[], T]) -> T:
        """What `work` gives: every process calls it, and only in the first it may run forwards.

        The others run their forwards along while the first works, and call it afterwards.
        """
        if not self.is_split:
            return work()
        if processes.rank() == 0:
            # Before FSDP's own hook, which begins to gather.
            hook = self.base.denoiser.register_forward_pre_hook(_announce, prepend=True)
            try:
                result = work()
            finally:
                hook.remove()
            processes.any_true(False)  # not after an error: the others may wait for the rest of a forward
            return result
        while processes.any_true(False):
            with torch.no_grad():
                x_t = torch.zeros(self.base.latent_shape(1))
                self.base.predict(x_t, torch.full((1,), 0.5), rows_of(self._any, [0]))
        return work()


def _announce(denoiser: nn.Module, inputs: object) -> None:
    """A forward is about to run."""
    processes.any_true(True)


def split(denoiser: nn.Module, device: torch.device) -> None:
    """Split the weights of a denoiser, block by block; what is in no block is gathered for the whole forward."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # FSDP asks that nobody changes a block's output in place where it is a view; no denoiser of diffusers does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (processes.count(),))
    names = set(getattr(denoiser, "_no_split_modules", None) or ())
    for module in reversed(list(denoiser.modules())):  # inner blocks before those around them
        if module is denoiser or type(module).__name__ in names:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
