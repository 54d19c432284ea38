"""Tries a run on a small scale, so that whatever would stop it hours later is reported before it starts.

What a run does in an hour is done once: prompts, reward, pictures on disk, free space, the base model, one batch of
samples, one optimiser step at the run's own batch size, and an adapter written. A stage is skipped if a stage
that it needs has failed.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nft_pipeline.adapter import BaseModel, fingerprint, write_adapter

from ..bases.base import TrainBase, rows_of
from ..data.folder import Folder, load_picture, read_folder
from ..data.optimality import optimality
from ..data.pool import Pool, score
from ..data.sources import rewards_of
from ..devices.memory import memory_advice
from ..errors import ConfigError
from ..learn.export import make_adapter
from ..learn.learner import Learner
from ..learn.objective import Objective
from ..learn.online import baseline_warning
from ..rewards.find import find_prompts, find_reward
from ..settings.config import TrainConfig
from ..settings.file import read_settings
from ..show.observer import Observer
from ..show.records import check_trackers
from .checkpoint import load_checkpoint
from .sharding import check_sharding
from .trainer import load_base

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
        stage(f"reward {name}", partial(find_reward, name, **options.get(name, {})))
    if isinstance(mapping.get("watch_reward"), str) and mapping["watch_reward"]:
        stage(f"reward {mapping['watch_reward']}", partial(find_reward, mapping["watch_reward"]))
    for key in ("prompts", "held_out_prompts"):
        if isinstance(mapping.get(key), str):
            stage(key, partial(find_prompts, mapping[key]))
    folder = None
    if isinstance(mapping.get("data"), str):
        folder = stage("data", partial(_checked_folder, mapping["data"]))
    if config is None:
        return faults
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
    pool = stage("samples, pictures and scores", lambda: _trial_pool(base, config, folder))
    if pool is not None:
        stage("one optimiser step, samples and a sweep, an adapter", lambda: _trial_step(base, config, pool))
    say(Objective.of(config).describe(config.online, max(1, config.rounds)))
    if warning := baseline_warning(config):
        say(warning)
    return faults


def needed_bytes(base: TrainBase, config: TrainConfig, folder: Folder | None) -> int:
    """Roughly what a run writes: latents in fp16, conditions in fp32, and checkpoints with five copies of the LoRA."""
    count = len(folder.pictures) if folder else config.pool_size + config.held_out_size
    if config.online:
        count = config.round_prompts * config.group_size
    latents = 2 * count * math.prod(base.latent_shape(1))
    texts = len({picture.prompt for picture in folder.pictures}) if folder else len(find_prompts(config.prompts or ""))
    one = base.encode_prompts(["a"])
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


def _trial_pool(base: TrainBase, config: TrainConfig, folder: Folder | None) -> Pool:
    """One batch made as the run makes them. The scores are computed; how they become r is not tested."""
    prompts = [picture.prompt for picture in folder.pictures] if folder else find_prompts(config.prompts or "")
    prompts = prompts[:4]
    conditions = base.encode_prompts(prompts)
    count = 2 if folder else min(config.pool_batch, config.pool_size)
    prompt = torch.arange(count) % len(prompts)
    with memory_advice("sampling", pool_batch=config.pool_batch):
        noise = torch.randn(base.latent_shape(count), generator=torch.Generator().manual_seed(config.seed))
        steps, base.call["num_inference_steps"] = base.call["num_inference_steps"], min(2, config.pool_steps)
        try:
            empty = base.encode_empty()
            latents = base.sample_batch(rows_of(conditions, prompt), noise, empty)
        finally:
            base.call["num_inference_steps"] = steps
        pictures = base.decode_latents(latents)
        base.encode_pictures(pictures[:1])
    texts = [prompts[i] for i in prompt.tolist()]
    scores = {name: score(reward, name, pictures, texts) for name, reward in rewards_of(config).items()}
    if scores:
        groups = prompt.numpy() if config.online else None
        optimality(
            scores, config.optimality, weights=config.weights, groups=groups, at=config.optimality_at, mix=config.mix
        )
    return Pool.of(latents.half(), prompt, conditions, torch.linspace(0.1, 0.9, count))


def _trial_step(base: TrainBase, config: TrainConfig, pool: Pool) -> None:
    base_identity = BaseModel(id=config.base_model, revision=None, fingerprint=fingerprint(base.denoiser))
    learner = Learner(base, pool.conditions, replace(config, checkpoint_every=0))
    small: dict[str, Any] = {"sweep_size": min(2, config.sweep_size), "samples_every": min(1, config.samples_every)}
    small |= {"sweep_strengths": [0.0, 1.0], "trackers": [], "keep_best": False}
    steps, base.call["num_inference_steps"] = base.call["num_inference_steps"], min(2, config.pool_steps)
    try:
        with memory_advice("training", micro_batch=config.micro_batch):
            learner.step(pool)
        if config.online:
            learner.finish_round()
        with tempfile.TemporaryDirectory() as folder:
            observer = Observer(replace(config, **small), base, base_identity, Path(folder), say=lambda line: None)
            try:
                observer.begin(learner)
                observer.grid(learner)
                observer.look(learner)
            finally:
                observer.close()
            write_adapter(Path(folder) / "adapter", make_adapter(learner, base_identity, 0.5, len(pool)))
    finally:
        base.call["num_inference_steps"] = steps
        with suppress(Exception):
            learner.remove()
