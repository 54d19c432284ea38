"""Where an offline run's pool comes from: sampled from the base model and scored, or a folder of scored pictures.

Either is made once and kept in the run's folder; a later start with the same settings reads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nft_pipeline.files.atomic import atomic_write_bytes
from nft_pipeline.files.picture_list import METADATA
from nft_pipeline.files.private import without_password

from ..bases.base import TrainBase
from ..rewards.find import find_prompts, prompt_facts
from ..settings.config import TrainConfig
from .folder import folder_pool, read_folder, split, support_gap
from .parts import Parts
from .pool import Pool, check_pool, load_pool, pool_key, sample_pool, save_pool
from .scorers import RunRewards

HELD_OUT_SEED = 1_000_003  # added to the run's seed: the held-out pool's noise is never the training pool's
HELD_OUT_EVERY = 10  # of a folder's pictures, where it has as many as
HELD_OUT_FROM = 400  # with fewer the head is cross-validated, and all of them are learned from
OWN_SAMPLES = 32  # of the base model, to compare a folder's pictures with
WIDE_GAP = 1.25

Say = Callable[[str], None]


def offline_pools(
    base: TrainBase,
    config: TrainConfig,
    out: Path,
    say: Say,
    rewards: RunRewards,
    stop: Callable[[], None] = lambda: None,
) -> tuple[Pool, Pool | None]:
    """(training pool, held-out pool); the latter where a head is to be measured on pictures kept apart.

    Args:
        out: the run's folder, where pools and what there is of them are kept.
        rewards: the run's.
        stop: called before each batch that is drawn or encoded; may raise, and the same call goes on behind the last.

    Raises:
        PoolError, RewardError, OptimalityError, DataError: what cannot be trained on, named.
    """
    if config.data is not None:
        pool, held_out = _folder(base, config, out, say, stop)
    else:
        pool = _sampled(base, config, out, say, rewards, stop, held_out=False)
        held_out = _sampled(base, config, out, say, rewards, stop, held_out=True) if config.kind == "positive" else None
    held = "" if held_out is None else f"; held out: {len(held_out)}, {held_out.r.mean():.3f}"
    say(f"pool: {len(pool)} samples, mean reward {pool.r.mean():.3f}{held}")
    check_pool(pool, config.reward_name)
    return pool, held_out


def _drawn_with(base: TrainBase, config: TrainConfig) -> dict[str, Any]:
    negative = {"negative_prompt": base.negative_prompt} if base.negative_prompt else {}
    return {"base": config.base_model, "dtype": str(base.dtype), "call": base.call, **negative, **_revision(config)}


def _revision(config: TrainConfig) -> dict[str, Any]:
    return {name: value for name in ("base_revision", "base_variant") if (value := getattr(config, name)) is not None}


def _settings(base: TrainBase, config: TrainConfig) -> dict[str, Any]:
    # The first pools compared all pictures with each other; a run that has one goes on with it.
    return {
        **_drawn_with(base, config),
        "optimality": [config.optimality, config.optimality_at],
        **({"mix": config.mix} if config.mix != "mean" else {}),
    }


def _sampled(
    base: TrainBase,
    config: TrainConfig,
    out: Path,
    say: Say,
    rewards: RunRewards,
    stop: Callable[[], None],
    *,
    held_out: bool,
) -> Pool:
    assert config.prompts is not None
    prompts = find_prompts(config.held_out_prompts if held_out and config.held_out_prompts else config.prompts)
    size, seed = config.pool_size, config.seed
    if held_out:
        size, seed = config.held_out_size, config.seed + HELD_OUT_SEED
    weights = {without_password(name): weight for name, weight in config.weights.items()}
    asked = {"wordings": config.pool_wordings} if config.pool_wordings else {}
    made = {"prompts": prompts, "reward": weights, "size": size, "seed": seed, "batch": config.pool_batch, **asked}
    if facts := prompt_facts(config.prompts, config.held_out_prompts):
        made["facts"] = facts
    label = "held out" if held_out else "pool"
    path, key = out / f"{label.replace(' ', '_')}.safetensors", pool_key({**_settings(base, config), **made})
    drawn = {"prompts": prompts, "size": size, "seed": seed, **asked}
    parts = Parts(path.with_suffix(".parts"), pool_key({**_drawn_with(base, config), **drawn}))
    pool = load_pool(path, key, say)
    if pool is None:
        pool, found = sample_pool(
            base,
            prompts,
            rewards.trained(),
            config.optimality,
            size=size,
            seed=seed,
            batch=config.pool_batch,
            weights=config.public_weights,
            at=config.optimality_at,
            mix=config.mix,
            label=label,
            wordings=config.pool_wordings,
            empty=base.encode_empty(),
            parts=parts,
            identity=rewards.identity,
            stop=stop,
        )
        say(f"{label}, scored: {found.describe()}")
        if config.pool_wordings:
            say(f"{label}, asked for as {', '.join(config.pool_wordings)}, and learned under the prompt alone")
        save_pool(pool, path, key)
    parts.clear()
    return pool


def _folder(
    base: TrainBase, config: TrainConfig, out: Path, say: Say, stop: Callable[[], None]
) -> tuple[Pool, Pool | None]:
    assert config.data is not None
    folder = read_folder(config.data)
    if folder.unjudged:
        say(f"data: {folder.unjudged} lines have neither a score nor liked and are left out")
    said = hashlib.sha256((Path(config.data) / METADATA).read_bytes()).hexdigest()
    stamps = [[p.path.stat().st_size, p.path.stat().st_mtime_ns] for p in folder.pictures]
    path, key = out / "pool.safetensors", pool_key({**_settings(base, config), "metadata": said, "stamps": stamps})
    pool = load_pool(path, key, say)
    if pool is None:
        parts = Parts(path.with_suffix(".parts"), key)
        pool, found = folder_pool(folder, base, config.optimality, at=config.optimality_at, parts=parts, stop=stop)
        say(f"data, scored: {found.describe()}; sizes of picture: {len(pool.buckets)}")
        save_pool(pool, path, key)
        parts.clear()
    scales = sorted({scale for scale in folder.guidance_scales if scale is not None})
    if any(scale > 1 for scale in scales):
        say(
            f"the pictures were sampled with guidance_scale {', '.join(f'{s:g}' for s in scales)}: an adapter trained "
            "on them bakes that guidance in. Lower guidance_scale when you use it, or sample them without"
        )
    if not config.made_by_base:
        say(_gap(base, pool, config, out / "support_gap.json", key, stop))
    if config.kind != "positive" or len(pool) < HELD_OUT_FROM:
        return pool, None
    return split(pool, HELD_OUT_EVERY)


def _gap(base: TrainBase, pool: Pool, config: TrainConfig, path: Path, key: str, stop: Callable[[], None]) -> str:
    """How far a folder's pictures are from what the base model draws, in words; computed once and kept in `path`."""
    some = torch.arange(len(pool))[:: max(1, len(pool) // (2 * OWN_SAMPLES))]
    prompt = pool.prompt[some][:OWN_SAMPLES]
    gap = _kept_gap(path, key)
    if gap is None:
        batch = config.pool_batch
        own = base.sample(pool.conditions, prompt, seed=config.seed, batch=batch, label="support gap", stop=stop)
        gap = support_gap(base, pool.rows(some), own, prompt, batch)
        atomic_write_bytes(path, json.dumps({"key": key, "gap": gap}).encode())
    meaning = "the base model could have drawn them"
    if gap > WIDE_GAP:
        meaning = (
            "they are not what the base model draws, so v_old is not their mean; policy with baseline alpha stands "
            "that best. Sampling the pictures from the base model is better still"
        )
    return f"support gap: v_old misses your pictures {gap:.2f} times as far as its own {len(prompt)} samples; {meaning}"


def _kept_gap(path: Path, key: str) -> float | None:
    """The gap that was computed for the pool of this key, None if none was."""
    try:
        kept = json.loads(path.read_text("utf-8"))
        return float(kept["gap"]) if kept["key"] == key else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
