"""The frozen base model split over the GPUs of a run. LoRA, head and optimiser stay whole in every process.

    accelerate launch --use_fsdp --fsdp_version 2 --num_processes 4 -m nft_pipeline train my_run.yaml
    accelerate launch --use_deepspeed --zero_stage 3 --num_processes 4 -m nft_pipeline train my_run.yaml

A forward gathers the weights of one block (FSDP) or layer (DeepSpeed) after another from all processes and lets them go
again, so all of them have to run forwards together. In a training step they do: each has an equal share of the batch.
Where the first process works alone (a pool, a sample grid, a sweep) it announces each of its forwards, and the others
run the same forward along with it.

DeepSpeed's stages 1 and 2 split gradients and the optimiser's state alone, which a LoRA has little of: with those a run
is as it is without DeepSpeed.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from ..bases.base import TrainBase, rows_of
from ..devices import processes
from ..errors import TrainingError
from ..settings.config import TrainConfig

T = TypeVar("T")
Splitter = Literal["FSDP", "DeepSpeed"]


def splitter() -> Splitter | None:
    """What accelerate launched this process and others to split the base model with; None if it stays whole.

    Raises:
        TrainingError: DeepSpeed's own settings file cannot be read.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    if processes.env_flag("ACCELERATE_USE_FSDP"):
        return "FSDP"
    if processes.env_flag("ACCELERATE_USE_DEEPSPEED") and _zero_settings()["stage"] == "3":
        return "DeepSpeed"
    return None


def _zero_settings() -> dict[str, str]:
    """DeepSpeed's `stage` and where it is asked to keep the weights (`offload`), from its own file if there is one."""
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if path == "none":
        stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
        return {"stage": stage, "offload": os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none")}
    try:
        with open(path, encoding="utf-8") as file:
            asked: dict[str, Any] = json.load(file)["zero_optimization"]
        offload = (asked.get("offload_param") or {}).get("device", "none")
        return {"stage": str(asked["stage"]), "offload": str(offload)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(
            f"DeepSpeed's settings {path} cannot be used: {type(error).__name__}: {error}. Expected a JSON file with a "
            '"stage" of 0 to 3 in "zero_optimization"'
        ) from error


def check_sharding(config: TrainConfig) -> None:
    """Whether a run with these settings can have its base model split, if that is asked for.

    Raises:
        TrainingError: the processes would not run equally many forwards, the weights are quantised or offloaded, or
            DeepSpeed is not installed or its settings cannot be read.
    """
    how = splitter()
    if how is None:
        return
    count = int(os.environ["WORLD_SIZE"])
    sizes = {"batch": config.batch, **({"head_batch": config.head_batch} if config.kind == "positive" else {})}
    for name, size in sizes.items():
        if size % count:
            raise TrainingError(
                f"{name} is {size} and {how} has {count} processes, which must have equal shares. Set {name} to a "
                f"multiple of {count}, such as {-(-size // count) * count}"
            )
    if config.quantise != "none":
        raise TrainingError(
            f"quantise is {config.quantise!r} under {how}, which splits weights that are not quantised. Leave one of "
            "them out"
        )
    if how == "FSDP":
        setting, is_set = "fsdp_offload_params", processes.env_flag("FSDP_OFFLOAD_PARAMS")
    else:
        setting, is_set = "offload_param_device", _zero_settings()["offload"] != "none"
    if is_set:
        raise TrainingError(
            f"{setting} is set: the split weights stay on the GPUs here. Leave it out of the launcher's settings, and "
            "use more processes where memory is short"
        )
    if how == "DeepSpeed":
        _deepspeed()


def _deepspeed() -> Any:
    try:
        import deepspeed
    except ImportError as error:
        raise TrainingError(
            f"DeepSpeed cannot be imported ({error}). Install it with pip install 'diffusion-nft[deepspeed]', or "
            "launch with --use_fsdp --fsdp_version 2, which needs nothing more"
        ) from error
    return deepspeed


class Sharding:
    """Splits a run's base model if that is asked for, and keeps the processes together.

    Args:
        base: with text encoders and without LoRAs; its denoiser is on the CPU, and on the base's device afterwards.
        say: gets a line if it is split.
    """

    def __init__(self, base: TrainBase, say: Callable[[str], None]) -> None:
        how = splitter()
        self.base, self.is_split = base, how is not None
        if how is not None:
            split(base.denoiser, base.device, how)
            base.placement.denoiser_stays()
            say(f"base model split over {processes.count()} processes by {how}")
            self._any = base.encode_prompts([""])  # conditions for forwards whose output is not used

    def first(self, work: Callable[[], T]) -> T:
        """Return `work()`. Every process calls it, but only in the first one may it run forwards.

        The others run forwards along while the first one works, and call `work` afterwards.
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


def split(denoiser: nn.Module, device: torch.device, how: Splitter) -> None:
    """Split a denoiser's weights over the processes, each on its device."""
    if how == "FSDP":
        _split_blocks(denoiser, device)
    else:
        _split_layers(denoiser, device)


def _split_blocks(denoiser: nn.Module, device: torch.device) -> None:
    """By FSDP, block by block; what is in no block is gathered for the whole forward."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # FSDP asks that nobody changes a block's output in place where it is a view; no denoiser of diffusers does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (processes.count(),))
    names = set(getattr(denoiser, "_no_split_modules", None) or ())
    for module in reversed(list(denoiser.modules())):  # inner blocks before those around them
        if module is denoiser or type(module).__name__ in names:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)


def _split_layers(denoiser: nn.Module, device: torch.device) -> None:
    """By DeepSpeed's ZeRO of stage 3 without an optimiser: its hooks gather a layer's weights for both directions."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    deepspeed = _deepspeed()
    deepspeed.utils.logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".torch.distributed.all_gather_into_tensor. is deprecated")  # its own
    # All weights are split, however small, and let go after each use. By default those that are used again within the
    # next billion numbers are kept, which in many models is all of them.
    zero = {"stage": 3, "stage3_max_reuse_distance": 0, "stage3_param_persistence_threshold": 0}
    deepspeed.initialize(model=denoiser, config={"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero})
