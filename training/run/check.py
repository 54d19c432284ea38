"""Tries a run on a small scale, so that whatever would stop it hours later is reported before it starts.

What a run does in an hour is done once, at the run's own batches: prompts, reward, pictures on disk, free space, the
base model, one batch of samples, one optimiser step, what measures the adapter, and the adapter written. It is timed,
and the hours of the whole run are said. A stage is skipped if a stage that it needs has failed.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..bases.base import TrainBase
from ..data.folder import Folder, load_picture, read_folder
from ..data.settled import settled
from ..errors import ConfigError
from ..learn.objective import Objective
from ..learn.online import baseline_warning
from ..rewards.find import find_prompts, find_reward
from ..settings.config import TrainConfig
from ..settings.file import read_settings
from ..settings.public import public_reward
from ..show.observer import held_out
from ..show.records import check_trackers
from .checkpoint import load_checkpoint
from .hours import duration, seconds_of, work_of
from .load import load_base, unshareable
from .sharding import check_sharding
from .trial import Trial

Say = Callable[[str], None]
SPARE = 1.5  # a new checkpoint is written beside the old one; the rest is for logs and the system


def check(
    source: str | Path, overrides: Mapping[str, Any] | None, out: Path | None, *, say: Say = print, device: str = "auto"
) -> list[str]:
    """Try a run out. Nothing is written but to a temporary folder.

    Args:
        source, overrides: as `TrainConfig.from_yaml`.
        out: the run's folder; default as `diffusion-nft train` has it.
        say: called with one line per stage.
        device: as `train`.

    Returns:
        Every fault found, one each; empty if the run can start.
    """
    faults: list[str] = []

    def stage(what: str, act: Callable[[], Any]) -> Any:
        """The stage's result, None if it failed."""
        try:
            result = act()
        except Exception as error:
            faults.append(f"{what}: {error}")
            say(f"{what}: fault")
            return None
        say(f"{what}: ok")
        return result

    config, mapping = None, dict[str, Any]()
    try:
        mapping = read_settings(source, overrides)
        config = TrainConfig.from_mapping(mapping)
        say("settings: ok")
    except ConfigError as error:
        faults += error.faults or (str(error),)
        say("settings: fault")

    options = config.reward_options if config is not None else {}
    names = [mapping.get("reward"), *(mapping.get("rewards") or {})]
    for name in [name for name in names if isinstance(name, str) and name]:
        stage(f"reward {public_reward(name)}", partial(find_reward, name, **options.get(name, {})))
    if isinstance(mapping.get("watch_reward"), str) and mapping["watch_reward"]:
        stage(f"reward {public_reward(mapping['watch_reward'])}", partial(find_reward, mapping["watch_reward"]))
    more = mapping.get("sweep_rewards")
    for name in [name for name in more if isinstance(name, str)] if isinstance(more, list) else []:
        stage(f"reward {public_reward(name)}", partial(find_reward, name))
    for key in ("prompts", "held_out_prompts"):
        if isinstance(mapping.get(key), str):
            stage(key, partial(find_prompts, mapping[key]))
    folder = None
    if isinstance(mapping.get("data"), str):
        folder = stage("data", partial(_checked_folder, mapping["data"]))
    if config is None:
        return faults
    config = settled(config)
    if note := unshareable(config):
        say(note)
    stage("several processes", lambda: check_sharding(config))
    stage("trackers", partial(check_trackers, config.trackers))

    out = out or Path("runs") / config.name
    stage("checkpoint", lambda: load_checkpoint(out / "checkpoint.pt", config.to_dict()))
    loaded = stage("base model", lambda: load_base(config, device))
    if loaded is None:
        return faults
    base: TrainBase = loaded[0]
    stage("disk", lambda: _check_disk(out, needed_bytes(base, config, folder)))
    if faults:
        return faults
    prompts = [picture.prompt for picture in folder.pictures] if folder else find_prompts(config.prompts or "")
    trial = Trial(base, config, prompts, folder)
    pool = stage("samples, pictures and scores", trial.pool)
    if pool is not None:
        stage("one optimiser step, samples, a sweep and a calibration, an adapter", lambda: trial.steps(pool))
    for phase, room in base.fits.room.items():
        say(f"memory: {phase}, {room} at once fit")
    if trial.peaks:
        phases = ", ".join(f"{phase} {gib:.1f}" for phase, gib in trial.peaks.items())
        say(f"memory: GiB of {'the GPU' if base.device.type == 'cuda' else 'this process'} at most: {phases}")
    if not faults:
        say(_hours(config, prompts, folder, trial))
    say(Objective.of(config).describe(config.online, max(1, config.rounds)))
    if warning := baseline_warning(config):
        say(warning)
    return faults


def _hours(config: TrainConfig, prompts: list[str], folder: Folder | None, trial: Trial) -> str:
    """How long the run takes, by phase, from what the trial timed."""
    work = work_of(config, len(set(prompts)), len(set(held_out(config)[0])), len(folder.pictures) if folder else 0)
    phases = seconds_of(work, trial.pace, config.pool_steps, config.sweep_steps or config.pool_steps)
    parts = ", ".join(f"{phase} {duration(seconds)}" for phase, seconds in phases.items())
    return f"the run takes about {duration(sum(phases.values()))}: {parts}"


def needed_bytes(base: TrainBase, config: TrainConfig, folder: Folder | None) -> int:
    """Roughly what a run writes: latents in fp16, an offline run's conditions in fp32, and checkpoints with five copies
    of the LoRA."""
    count = len(folder.pictures) if folder else config.pool_size + config.held_out_size
    if config.online:
        count = config.round_prompts * config.group_size
    latents = 2 * count * math.prod(base.latent_shape(1))
    texts = len({picture.prompt for picture in folder.pictures}) if folder else len(find_prompts(config.prompts or ""))
    one = base.encode_prompts(["a"])
    texts = 0 if config.online else texts if folder else min(texts, config.pool_size + config.held_out_size)
    conditions = 4 * texts * sum(value.numel() for value in one.values())
    width = [module for module in base.denoiser.modules() if isinstance(module, torch.nn.Linear)]
    lora = 4 * config.rank * sum(module.in_features + module.out_features for module in width)
    return int(SPARE * (latents + conditions + 2 * 5 * lora))


def _check_disk(out: Path, needed: int) -> None:
    where = next(parent for parent in (out.resolve(), *out.resolve().parents) if parent.exists())
    free = shutil.disk_usage(where).free
    if free < needed:
        raise OSError(
            f"{free / 1e9:.1f} GB are free at {where} and the run writes up to {needed / 1e9:.1f} GB. Free some space, "
            "choose another --out, or lower pool_size"
        )
    with tempfile.TemporaryFile(dir=where):  # raises where nothing may be written
        pass


def _checked_folder(data: str) -> Folder:
    folder = read_folder(data)
    for picture in folder.pictures:
        load_picture(picture.path, (8, 8))
    return folder
