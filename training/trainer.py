"""A training run from settings to adapter: pool -> reward -> objective -> checkpoint -> adapter.

The same call resumes: a pool and a checkpoint found in the run's folder are used if they belong to the same settings.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import Adapter, AdapterConfig, BaseModel, fingerprint, write_adapter
from nft_pipeline.guidance import beta_from_tilt
from nft_pipeline.injection import remove_lora

from .calibration import Calibration, calibrate, calibration_table
from .checkpoint import load_checkpoint, save_checkpoint
from .config import TrainConfig
from .learner import ADAPTER, Learner, TrainingError
from .pool import Pool, check_pool, load_pool, pool_key, sample_pool, save_pool
from .precision import choose_precision
from .reward import find_prompts, find_reward

HELD_OUT_SEED = 1_000_003  # added to the run's seed: the held-out pool's noise is never the training pool's


@dataclass(frozen=True)
class TrainResult:
    """What a run made: the adapter, where it is, how well alpha does on held-out samples, and seconds by phase."""

    adapter: Adapter
    folder: Path
    calibration: list[Calibration]
    seconds: dict[str, float]


def train(config: TrainConfig, out: Path, *, say: Callable[[str], None] = print, device: str = "auto") -> TrainResult:
    """Run `config` and write `out/adapter`.

    Args:
        config: the run's settings.
        out: the run's folder; pools, checkpoint, losses and adapter go there.
        say: gets one line a phase.
        device: "auto" is CUDA if there is one, else the CPU.

    Raises:
        ConfigError, RewardError, PoolError, CheckpointError, TrainingError, AdapterError: named where they are defined.
    """
    out.mkdir(parents=True, exist_ok=True)
    where = torch.device(
        "cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device
    )
    dtype, reason = choose_precision(config.precision, where)
    seconds: dict[str, float] = {}
    guided = DiffusionNFTPipeline.from_pretrained(config.base_model)
    _check_trainable(guided.unwrap(), config.base_model)
    call = {"num_inference_steps": config.pool_steps, "guidance_scale": config.guidance_scale}
    call |= {key: value for key, value in guided.call_defaults.items() if key not in call}
    edge = guided.transformer.config.sample_size * guided.vae_scale_factor
    resolution = (int(call.get("height", edge)), int(call.get("width", edge)))
    pipe = guided.unwrap().to(where)

    started = time.monotonic()
    train_pool, held_out = (_pool(pipe, config, out, dtype, call, held_out=flag) for flag in (False, True))
    seconds["pool"] = time.monotonic() - started
    rate = train_pool.r.mean().item()
    say(f"pool: {len(train_pool)} samples, mean reward {rate:.3f}; held out: {len(held_out)}, {held_out.r.mean():.3f}")
    check_pool(train_pool, config.reward)

    denoiser = pipe.transformer
    base = BaseModel(id=config.base_model, revision=None, fingerprint=fingerprint(denoiser))
    learner = Learner(denoiser, train_pool.text.shape[-1], config, dtype)
    try:
        started = time.monotonic()
        say(f"training {config.steps} steps in {reason}")
        _optimise(learner, train_pool, config, out, say)
        seconds["train"] = time.monotonic() - started
        learner.use_average()
        learner.head.eval()
        calibration = calibrate(learner.alpha, held_out)
        say("alpha on held-out samples:\n" + calibration_table(calibration))
        adapter = _adapter(learner, config, base, resolution, rate, calibration, len(train_pool))
    finally:
        learner.switch.restore()
        remove_lora(denoiser, ADAPTER)
    folder = write_adapter(out / "adapter", adapter)
    (out / "checkpoint.pt").unlink(missing_ok=True)
    say(f"adapter written to {folder}")
    return TrainResult(adapter, folder, calibration, seconds)


def _check_trainable(pipe: Any, name: str) -> None:
    """The engine guides more families than the trainer can sample and differentiate so far."""
    denoiser = type(getattr(pipe, "transformer", None)).__name__
    if denoiser != "SD3Transformer2DModel":
        raise TrainingError(
            f"base_model {name!r} is a {type(pipe).__name__}; the trainer supports StableDiffusion3Pipeline so far. "
            "Set base_model to one; adapters trained elsewhere for other families can be used for sampling."
        )


def _pool(
    pipe: Any, config: TrainConfig, out: Path, dtype: torch.dtype, call: dict[str, Any], *, held_out: bool
) -> Pool:
    name = config.held_out_prompts if held_out and config.held_out_prompts else config.prompts
    prompts = find_prompts(name)
    size, seed = config.pool_size, config.seed
    if held_out:
        size, seed = config.held_out_size, config.seed + HELD_OUT_SEED
    settings = {
        "base": config.base_model,
        "prompts": prompts,
        "reward": config.reward,
        "size": size,
        "seed": seed,
        "batch": config.pool_batch,
        "dtype": str(dtype),
        "call": call,
    }
    key, label = pool_key(settings), "held out" if held_out else "pool"
    path = out / f"{label.replace(' ', '_')}.safetensors"
    pool = load_pool(path, key)
    if pool is None:
        pool = sample_pool(
            pipe,
            prompts,
            find_reward(config.reward),
            size=size,
            seed=seed,
            batch=config.pool_batch,
            reward_name=config.reward,
            dtype=dtype,
            label=label,
            **call,
        )
        save_pool(pool, path, key)
    return pool


def _optimise(learner: Learner, pool: Pool, config: TrainConfig, out: Path, say: Callable[[str], None]) -> None:
    path, settings = out / "checkpoint.pt", config.to_dict()
    if state := load_checkpoint(path, settings):
        learner.load_state_dict(state["learner"])
        say(f"resumed at step {learner.step_number}")
    smooth: dict[str, float] = {}
    with (
        tqdm(total=config.steps, initial=learner.step_number, desc="training", unit="step") as bar,
        (out / "losses.jsonl").open("a", encoding="utf-8") as log,
    ):
        while learner.step_number < config.steps:
            losses = learner.step(pool)
            smooth = {name: 0.95 * smooth.get(name, loss) + 0.05 * loss for name, loss in losses.items()}
            log.write(json.dumps({"step": learner.step_number, **losses}) + "\n")
            bar.update()
            bar.set_postfix({name: f"{loss:.4f}" for name, loss in smooth.items()})
            due = config.checkpoint_every and learner.step_number % config.checkpoint_every == 0
            if due and learner.step_number < config.steps:
                save_checkpoint(path, {"settings": settings, "learner": learner.state_dict()})


def _adapter(
    learner: Learner,
    config: TrainConfig,
    base: BaseModel,
    resolution: tuple[int, int],
    rate: float,
    calibration: list[Calibration],
    pool_size: int,
) -> Adapter:
    summary = {
        "objective": "positive",
        "pool": {"size": pool_size, "mean_reward": round(rate, 4), "source": "sampled from the base model"},
        "pairs": config.steps * config.batch,
        "settings": config.to_dict(),
        "alpha_held_out": [
            {"noise_level": c.noise_level, "auc": round(c.auc, 4), "error": round(c.error, 4), "n": c.n}
            for c in calibration
        ],
    }
    adapter_config = AdapterConfig(
        kind="positive",
        name=config.name,
        beta=beta_from_tilt(config.tilt),
        tilt=config.tilt,
        base_model=base,
        component=learner.family.component,
        denoiser=learner.family.denoiser,
        prediction=learner.family.prediction,
        rank=config.rank,
        reward={
            "name": config.reward,
            "description": config.reward_description,
            "normaliser": "none, already in [0, 1]",
        },
        base_rate=rate,
        guidance_scale=config.guidance_scale,
        resolution=resolution,
        training=summary,
        licence=config.licence,
    )
    return Adapter(adapter_config, learner.lora(), learner.head.cpu())
