"""A baked adapter from a positive one: pictures of the base model, optimiser steps of training/learn/bake.py, a folder.

The baked adapter is a policy whose stored tilt is the one that LoRA weight 1 stands for. So strength and plain LoRA
weight are one number, in any tool that loads LoRAs. It is written at the end, whole or not at all.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from nft_pipeline.adapter import Adapter, AdapterConfig, check_base, write_adapter
from nft_pipeline.adapters.config import plain_name
from nft_pipeline.adapters.names import LORA_FILE
from nft_pipeline.adapters.write import adapter_files, check_replaceable
from nft_pipeline.files.atomic import recover
from nft_pipeline.guidance import beta_from_tilt

from ..bases.base import TrainBase
from ..data.pool import Pool
from ..errors import TrainingError
from ..learn.bake import Baker, check_bakeable
from ..learn.export import without_paths
from ..rewards.contract import RewardError
from ..rewards.find import find_prompts
from ..settings import stored
from ..settings.config import TrainConfig
from ..settings.trust import code_in
from .load import load_base

STEPS = 384
BATCH = 128  # at most: without labels' noise more states a step gain little
LR = 0.5  # times the adapter's own, because the LoRA is trained already
PICTURES = 1024  # of the base model; none is scored, so fewer do than a training run wants
CEILING = 2.0  # times the adapter's own tilt: what weight 1 stands for
TAIL = 32  # steps whose mean loss is reported, the first and the last of them
# What baking takes over from the run that made the adapter: how pictures are drawn, and what fits the machine.
TAKEN_OVER = (
    *("prompts", "guidance_scale", "resolution", "num_frames", "pool_steps", "pool_batch", "batch", "micro_batch"),
    *("lr", "weight_decay", "ema", "noise_shift", "gradient_checkpointing", "precision", "quantise", "optimizer"),
)


def bake_settings(adapter: Adapter, prompts: str | None, steps: int, rank: int | None, seed: int) -> TrainConfig:
    """The settings of a baking: those of the run that made the adapter, as far as its config has them.

    Args:
        adapter: the adapter to bake.
        prompts: as the setting `prompts`; None is what the adapter was trained on.
        steps: optimiser steps.
        rank: of the LoRA; None is the adapter's own.
        seed: of the pictures and of the training.

    Raises:
        TrainingError: the adapter does not say its prompts, and none are given.
        ConfigError: a number out of range.
    """
    config, run = adapter.config, adapter.config.training.get("settings")
    of_run = dict(run) if isinstance(run, Mapping) else {"guidance_scale": config.guidance_scale}
    settings = {key: value for key, value in stored.with_defaults(of_run).items() if key in TAKEN_OVER}
    if prompts is not None:
        settings["prompts"] = prompts
    if settings.get("prompts") is None:
        raise TrainingError(
            f'"{config.name}" does not say on which prompts it was trained. Give --prompts: a text file with one '
            "prompt per line, such as people will draw with it"
        )
    return TrainConfig.from_mapping(
        {
            **settings,
            "name": plain_name(f"{config.name}-baked", "baked"),
            "base_model": config.base_model.id,
            "reward": str(config.reward["name"]),
            "reward_description": str(config.reward["description"]),
            "licence": config.licence,
            "steps": steps,
            "rank": config.rank if rank is None else rank,
            "lr": LR * settings["lr"],
            "batch": min(BATCH, settings["batch"]),
            "pool_size": PICTURES,
            "seed": seed,
        }
    )


def bake(
    adapter: Adapter,
    folder: Path,
    *,
    prompts: str | None = None,
    steps: int = STEPS,
    rank: int | None = None,
    seed: int = 0,
    device: str = "auto",
    say: Callable[[str], None] = print,
) -> Adapter:
    """Bake an adapter and write what comes out.

    Args:
        adapter: a positive adapter, read.
        folder: the folder to write; an adapter in it is replaced.
        prompts, steps, rank, seed: see `bake_settings`.
        device: "auto" is CUDA if there is one, else the CPU.
        say: called with one line per phase.

    Returns:
        The baked adapter.

    Raises:
        TrainingError: the adapter cannot be baked.
        AdapterError: it belongs to another base model, or the folder may not be replaced.
        RewardError: prompts that cannot be found.
    """
    check_bakeable(adapter, rank)
    check_replaceable(recover(folder), {})
    settings = bake_settings(adapter, prompts, steps, rank, seed)
    ceiling = CEILING * adapter.config.tilt
    texts = _prompts(settings, given=prompts is not None)
    base, reason = load_base(settings, device)
    check_base(adapter.config, base.denoiser, adapter.lora)
    pool = _pictures(base, settings, texts)
    say(f"baking {settings.steps} steps in {reason}; weight 1 is a tilt of {ceiling:g}")
    baker = Baker(base, adapter, pool, settings, ceiling)
    try:
        losses = _train(baker, settings)
        baker.use_average()
        config = baked_config(adapter, settings, ceiling, losses)
        baked = Adapter(config, baker.roles.lora())
    finally:
        baker.remove()
    written = write_adapter(folder, baked)
    say(f"distance to guidance in two passes: {_mean(losses[:TAIL]):.3g} at first, {_mean(losses[-TAIL:]):.3g} at last")
    say(f"adapter written to {written}")
    return baked


def baked_config(adapter: Adapter, settings: TrainConfig, ceiling: float, losses: list[float]) -> AdapterConfig:
    """What the baked adapter says about itself.

    Args:
        adapter: the adapter that was baked.
        settings: how.
        ceiling: the tilt that weight 1 stands for.
        losses: of every step.
    """
    config = adapter.config
    lora = hashlib.sha256(adapter_files(adapter)[LORA_FILE]).hexdigest()
    summary = {
        "objective": "baked",
        "baked_from": {"name": config.name, "tilt": config.tilt, "lora_sha256": lora},
        "pool": {"size": settings.pool_size, "source": "sampled from the base model"},
        "pairs": settings.steps * settings.batch,
        "distance": {"first": round(_mean(losses[:TAIL]), 6), "last": round(_mean(losses[-TAIL:]), 6)},
        "settings": {key: getattr(settings, key) for key in (*TAKEN_OVER, "steps", "rank", "seed")},
    }
    return dataclasses.replace(
        config,
        kind="policy",
        name=settings.name,
        tilt=ceiling,
        beta=beta_from_tilt(ceiling),
        rank=settings.rank,
        base_rate=None,
        dial=None,  # that of the other adapter; this one's weights are others
        strength=config.strength * config.tilt / ceiling,
        training=without_paths(summary),
    )


def _prompts(settings: TrainConfig, given: bool) -> list[str]:
    assert settings.prompts is not None
    try:
        if not given and (code := code_in({"prompts": settings.prompts})):
            raise RewardError(f"{code[0]} is code that the adapter names, and importing it runs it")
        return find_prompts(settings.prompts)
    except RewardError as error:
        if given:
            raise
        raise RewardError(f"the adapter was trained on prompts that are not here: {error}. Give --prompts") from error


def _pictures(base: TrainBase, settings: TrainConfig, texts: list[str]) -> Pool:
    """Pictures of the base model, each prompt about equally often. r is 1 for all: none is scored."""
    texts = texts[: settings.pool_size]  # no more are drawn
    conditions, empty = base.encode_prompts(texts), base.encode_empty()
    base.release()
    prompt = torch.arange(settings.pool_size) % len(texts)
    latents = base.sample(
        conditions, prompt, seed=settings.seed, batch=settings.pool_batch, label="pictures", empty=empty
    )
    return Pool.of(latents.half(), prompt, conditions, torch.ones(len(prompt)))


def _train(baker: Baker, settings: TrainConfig) -> list[float]:
    losses: list[float] = []
    with tqdm(range(settings.steps), desc="baking", unit="step") as bar:
        for _ in bar:
            losses.append(baker.step())
            bar.set_postfix(loss=f"{_mean(losses[-TAIL:]):.4f}")
    return losses


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
