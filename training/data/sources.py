"""Where an offline run's pool comes from: sampled from the base model and scored, or a folder of scored pictures.

Either is made once and kept in the run's folder; a later start with the same settings reads it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nft_pipeline.files.picture_list import METADATA
from nft_pipeline.files.private import without_password

from ..bases.base import TrainBase
from ..rewards.find import Scorer, find_prompts, find_reward
from ..settings.config import TrainConfig
from ..settings.data import DataSettings
from ..settings.public import public_names
from .folder import folder_pool, read_folder, split, support_gap
from .pool import Pool, check_pool, load_pool, pool_key, sample_pool, save_pool

HELD_OUT_SEED = 1_000_003  # added to the run's seed: the held-out pool's noise is never the training pool's
HELD_OUT_EVERY = 10  # of a folder's pictures
OWN_SAMPLES = 32  # of the base model, to compare a folder's pictures with
WIDE_GAP = 1.25

Say = Callable[[str], None]


def rewards_of(config: DataSettings) -> dict[str, Scorer]:
    """The run's rewards by their public names: r by each one's card with optimality "raw", else scores for it to
    normalise."""
    own_scale, options, shown = config.optimality != "raw", config.reward_options, public_names(config.weights)
    return {shown[name]: find_reward(name, own_scale=own_scale, **options.get(name, {})) for name in config.weights}


def offline_pools(base: TrainBase, config: TrainConfig, out: Path, say: Say) -> tuple[Pool, Pool | None]:
    """(training pool, held-out pool); the latter where a head is to be measured.

    Raises:
        PoolError, RewardError, OptimalityError, DataError: what cannot be trained on, named.
    """
    if config.data is not None:
        pool, held_out = _folder(base, config, out, say)
    else:
        pool = _sampled(base, config, out, say, held_out=False)
        held_out = _sampled(base, config, out, say, held_out=True) if config.kind == "positive" else None
    held = "" if held_out is None else f"; held out: {len(held_out)}, {held_out.r.mean():.3f}"
    say(f"pool: {len(pool)} samples, mean reward {pool.r.mean():.3f}{held}")
    check_pool(pool, config.reward_name)
    return pool, held_out


def _settings(base: TrainBase, config: TrainConfig) -> dict[str, Any]:
    # The first pools compared all pictures with each other; a run that has one goes on with it.
    return {
        "base": config.base_model,
        "optimality": [config.optimality, config.optimality_at],
        "dtype": str(base.dtype),
        "call": base.call,
        **({"mix": config.mix} if config.mix != "mean" else {}),
    }


def _sampled(base: TrainBase, config: TrainConfig, out: Path, say: Say, *, held_out: bool) -> Pool:
    assert config.prompts is not None
    prompts = find_prompts(config.held_out_prompts if held_out and config.held_out_prompts else config.prompts)
    size, seed = config.pool_size, config.seed
    if held_out:
        size, seed = config.held_out_size, config.seed + HELD_OUT_SEED
    weights = {without_password(name): weight for name, weight in config.weights.items()}
    made = {"prompts": prompts, "reward": weights, "size": size, "seed": seed, "batch": config.pool_batch}
    label = "held out" if held_out else "pool"
    path, key = out / f"{label.replace(' ', '_')}.safetensors", pool_key({**_settings(base, config), **made})
    pool = load_pool(path, key, say)
    if pool is None:
        pool, found = sample_pool(
            base,
            prompts,
            rewards_of(config),
            config.optimality,
            size=size,
            seed=seed,
            batch=config.pool_batch,
            weights=config.public_weights,
            at=config.optimality_at,
            mix=config.mix,
            label=label,
            empty=base.encode_empty(),
        )
        say(f"{label}, scored: {found.describe()}")
        save_pool(pool, path, key)
    return pool


def _folder(base: TrainBase, config: TrainConfig, out: Path, say: Say) -> tuple[Pool, Pool | None]:
    assert config.data is not None
    folder = read_folder(config.data)
    if folder.unjudged:
        say(f"data: {folder.unjudged} lines have neither a score nor liked and are left out")
    said = hashlib.sha256((Path(config.data) / METADATA).read_bytes()).hexdigest()
    stamps = [[p.path.stat().st_size, p.path.stat().st_mtime_ns] for p in folder.pictures]
    path, key = out / "pool.safetensors", pool_key({**_settings(base, config), "metadata": said, "stamps": stamps})
    pool = load_pool(path, key, say)
    if pool is None:
        pool, found = folder_pool(folder, base, config.optimality, at=config.optimality_at)
        say(f"data, scored: {found.describe()}; sizes of picture: {len(pool.buckets)}")
        save_pool(pool, path, key)
    scales = sorted({scale for scale in folder.guidance_scales if scale is not None})
    if any(scale > 1 for scale in scales):
        say(
            f"the pictures were sampled with guidance_scale {', '.join(f'{s:g}' for s in scales)}: an adapter trained "
            "on them bakes that guidance in. Lower guidance_scale when you use it, or sample them without"
        )
    if not config.made_by_base:
        say(_gap(base, pool, config))
    if config.kind != "positive" or len(pool) < 2 * HELD_OUT_EVERY:
        return pool, None
    return split(pool, HELD_OUT_EVERY)


def _gap(base: TrainBase, pool: Pool, config: TrainConfig) -> str:
    """How far a folder's pictures are from what the base model draws, in words."""
    some = torch.arange(len(pool))[:: max(1, len(pool) // (2 * OWN_SAMPLES))]
    prompt = pool.prompt[some][:OWN_SAMPLES]
    own = base.sample(pool.conditions, prompt, seed=config.seed, batch=config.pool_batch, label="support gap")
    gap = support_gap(base, pool.rows(some), own, prompt, config.pool_batch)
    meaning = "the base model could have drawn them"
    if gap > WIDE_GAP:
        meaning = (
            "they are not what the base model draws, so v_old is not their mean; policy with baseline alpha stands "
            "that best. Sampling the pictures from the base model is better still"
        )
    return f"support gap: v_old misses your pictures {gap:.2f} times as far as its own {len(prompt)} samples; {meaning}"
