"""Runs of the trainer small enough for a test: a random Stable Diffusion 3 of two blocks, rewards of a few lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from helpers.tiny import tiny_pipe
from nft_pipeline.training.bases.base import TrainBase
from nft_pipeline.training.bases.registry import train_base
from nft_pipeline.training.data.pool import Pool
from nft_pipeline.training.settings.config import TrainConfig

REQUIRED: dict[str, Any] = {
    "name": "tiny",
    "base_model": "tiny",
    "reward_description": "bright",
    "licence": "apache-2.0",
}
SMALL: dict[str, Any] = {
    **REQUIRED,
    "reward": "helpers.tiny_run:bright",
    "prompts": "helpers.tiny_run:prompts",
    "optimality": "rank",
    "pool_size": 24,
    "pool_steps": 2,
    "pool_batch": 12,
    "held_out_size": 12,
    "rank": 2,
    "head_width": 16,
    "head_queries": 2,
    "head_layers": 1,
    "steps": 4,
    "batch": 8,
    "head_batch": 8,
    "precision": "fp32",
    "checkpoint_every": 2,
    "samples_every": 0,
    "sweep_size": 0,
}
SHOWN: dict[str, Any] = {"samples_every": 2, "sweep_size": 6, "sweep_strengths": [0, 1], "watch_reward": "sharpness"}
ONLINE: dict[str, Any] = {
    **SMALL,
    "optimality": "group",
    "rounds": 2,
    "round_prompts": 2,
    "group_size": 4,
    "round_steps": 2,
    "pool_batch": 4,
    "eta0": 4.0,
}


def dark(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> np.ndarray:
    """Hardly ever anything, in [0, 0.05]."""
    return 0.05 * bright(images, prompts, metadata)


def bright(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> np.ndarray:
    """Mean brightness, 1 for white."""
    return np.array([np.asarray(image, dtype=np.float64).mean() / 255 for image in images])


def gloomy(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> np.ndarray:
    """Mean darkness, 1 for black."""
    return 1 - bright(images, prompts, metadata)


def left(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> np.ndarray:
    """Mean brightness of the left half, in steps of 1/500: a pixel that rounds the other way changes nothing."""
    return np.array([_in_steps(np.asarray(image)[:, : image.width // 2]) for image in images])


def upper(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> np.ndarray:
    """The same of the upper half."""
    return np.array([_in_steps(np.asarray(image)[: image.height // 2]) for image in images])


def _in_steps(pixels: np.ndarray) -> float:
    return round(500 * pixels.astype(np.float64).mean() / 255) / 500


MET: list[tuple[str, dict[str, Any]]] = []  # prompts and metadata that `listener` was given


def listener(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> np.ndarray:
    """Numbers from 0 to 1 in order; it remembers what it was given."""
    MET.extend(zip(prompts, map(dict, metadata), strict=True))
    return np.linspace(0, 1, len(images))


def in_bytes(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> np.ndarray:
    """As `bright`, 255 for white, and without an `info` that says so."""
    return 255 * bright(images, prompts, metadata)


def sometimes_missing(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> np.ndarray:
    """As `bright`, NaN for the last of every call."""
    scores = bright(images, prompts, metadata)
    scores[-1] = np.nan
    return scores


def prompts() -> list[str]:
    return ["a cat", "a dog", "a cow"]


def save_tiny(folder: Path) -> str:
    """A saved tiny model with its call defaults; its path."""
    tiny_pipe().save_pretrained(folder)
    (folder / "call_defaults.json").write_text(json.dumps({"max_sequence_length": 4, "height": 8, "width": 8}))
    return str(folder)


def tiny_base(**call: Any) -> TrainBase:
    return train_base(tiny_pipe(), {"num_inference_steps": 2, "guidance_scale": 1.0, "max_sequence_length": 4, **call})


def random_pool(base: TrainBase, n: int = 12, seed: int = 0) -> Pool:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(base.latent_shape(n), generator=generator)
    r = torch.rand(n, generator=generator)
    return Pool.of(latents, torch.arange(n) % 3, base.encode_prompts(prompts()), r)


def config(**settings: Any) -> TrainConfig:
    return TrainConfig.from_mapping({**SMALL, **settings})


def picture_folder(folder: Path, count: int = 24, **extra: Any) -> Path:
    """Noisy pictures of two shapes; the brighter half is liked."""
    folder.mkdir()
    lines, rng = [], np.random.default_rng(0)
    for i in range(count):
        size = (8, 8) if i % 3 else (8, 16)
        level = 40 + 170 * (i % 2)
        Image.fromarray(rng.integers(level, level + 40, (*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        lines.append({"image": f"{i}.png", "prompt": prompts()[i % 3], "liked": bool(i % 2), **extra})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
