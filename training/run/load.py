"""A run's base model: where it is loaded from and to, and what its adapter calls it."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import torch

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import BaseModel, fingerprint
from nft_pipeline.checks import shown
from nft_pipeline.models import shipped_model

from .. import authors
from ..bases.base import TrainBase
from ..bases.registry import train_base
from ..devices.precision import choose_precision
from ..devices.quantised import quantise
from ..errors import TrainingError
from ..settings.config import TrainConfig


def find_device(device: str) -> torch.device:
    """The device of this name; "auto" is CUDA if there is one, else the CPU."""
    return torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


def load_base(config: TrainConfig, device: str = "auto") -> tuple[TrainBase, str]:
    """The run's base model, whose parts go to the device when they are needed, and in words why it computes in the
    number format it does.

    Raises:
        TrainingError: a family the trainer does not know, or one that has no negative prompt and is given one; a
            package that `quantise` needs is not installed; or the Hub wants its terms accepted first.
    """
    where = find_device(device)
    dtype, reason = choose_precision(config.precision, where)
    # Frozen weights need no more than they compute in. On a CPU "auto" keeps them in fp32 as ever: what a run there
    # learns does not change with this.
    is_small = dtype != torch.float32 and (where.type != "cpu" or config.precision != "auto")
    kept: dict[str, Any] = {"dtype": {"default": dtype, "vae": torch.float32}} if is_small else {}
    wanted = {"revision": config.base_revision, "variant": config.base_variant}
    kept |= {name: value for name, value in wanted.items() if value is not None}
    try:
        guided = DiffusionNFTPipeline.from_pretrained(config.base_model, **kept)
    except OSError as error:
        if _is_gated(error):
            raise TrainingError(
                f"the base model {config.base_model} is gated: its makers want their terms accepted first. Open "
                f"https://huggingface.co/{config.base_model}, accept them, and log in here with `hf auth login`"
            ) from error
        raise
    call: dict[str, Any] = {"num_inference_steps": config.pool_steps, "guidance_scale": config.guidance_scale}
    call |= {key: value for key, value in guided.call_defaults.items() if key not in call}
    if config.resolution is not None:
        call |= {"height": config.resolution, "width": config.resolution}
    if config.negative_prompt:
        call["negative_prompt"] = config.negative_prompt
    if config.num_frames is not None:
        call["num_frames"] = config.num_frames
    pipe = guided.unwrap()
    if config.authors_trainer and "max_sequence_length" in signature(pipe.__call__).parameters:
        call.setdefault("max_sequence_length", authors.TEXT_TOKENS)
    base = train_base(pipe, call, dtype, where)
    if config.negative_prompt and not base.has_cfg:
        raise TrainingError(
            f"negative_prompt is {shown(config.negative_prompt)}, and a {type(pipe).__name__} has no classifier-free "
            "guidance that could read it. Leave it out"
        )
    if config.quantise != "none":
        quantise(base.denoiser, config.quantise, dtype, where)
    return base, reason


def base_identity(config: TrainConfig, base: TrainBase) -> BaseModel:
    """What the run's adapter calls its base model.

    A folder or a file without `base_id` goes by its whole path, so that nobody takes "models/sd15" for an id on the
    Hub.
    """
    name = config.base_id or config.base_model
    if config.base_id is None and is_on_this_machine(name):
        name = str(Path(name).resolve())
    return BaseModel(id=name, revision=config.base_revision, fingerprint=fingerprint(base.denoiser))


def is_on_this_machine(base_model: str) -> bool:
    """Whether a base model is a folder or a file here, and not a shipped one."""
    return shipped_model(base_model) is None and Path(base_model).exists()


def unshareable(config: TrainConfig) -> str | None:
    """A note if the adapter will name a place on this machine as its base model; None if it will not."""
    if config.base_id is not None or not is_on_this_machine(config.base_model):
        return None
    return (
        f"note: base_model is {config.base_model}, on this machine, so nobody else can tell what the adapter is for "
        "and it cannot be pushed. Set base_id to the Hub id of the model that it is a copy of"
    )


def _is_gated(error: BaseException | None) -> bool:
    """Whether the Hub refused for its terms: diffusers says then that there is no such model."""
    from huggingface_hub.errors import GatedRepoError

    while error is not None:
        if isinstance(error, GatedRepoError):
            return True
        error = error.__cause__ or error.__context__
    return False
