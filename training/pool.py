"""The pool: pictures sampled from the base model, scored once, kept as latents and prompt embeddings.

Offline training never runs a text encoder, the VAE or the reward again. Because the pool comes from the base model
itself, E[y | x_t] over the pool is what the base model predicts, which is what DESIGN M1 to M3 are about.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from nft_pipeline.atomic import atomic_write_bytes

from .precision import autocast
from .reward import Reward, checked_scores


class PoolError(ValueError):
    """A pool that cannot be used for training."""


@dataclass(frozen=True)
class Pool:
    """Scored samples of the base model.

    Args:
        latents: scaled latents x_0, float16, shape (N, C, H, W).
        prompt: index of each sample's prompt, int64, shape (N,).
        text: prompt embeddings, float32, shape (P, L, D).
        pooled: pooled prompt embeddings, float32, shape (P, E).
        r: scores in [0, 1], float32, shape (N,).
    """

    latents: Tensor
    prompt: Tensor
    text: Tensor
    pooled: Tensor
    r: Tensor

    def __len__(self) -> int:
        return len(self.r)


@torch.no_grad()
def encode_prompts(pipe: Any, prompts: Sequence[str], call: dict[str, Any], batch: int = 256) -> tuple[Tensor, Tensor]:
    """Prompt embeddings (P, L, D) and pooled (P, E), as a call of `pipe` without CFG makes them."""
    limits = {"max_sequence_length": call["max_sequence_length"]} if "max_sequence_length" in call else {}
    text, pooled = [], []
    for i in range(0, len(prompts), batch):
        some = list(prompts[i : i + batch])
        parts = pipe.encode_prompt(
            prompt=some, prompt_2=None, prompt_3=None, do_classifier_free_guidance=False, **limits
        )
        text.append(parts[0].float())
        pooled.append(parts[2].float())
    return torch.cat(text), torch.cat(pooled)


@torch.no_grad()
def decode_latents(pipe: Any, latents: Tensor, batch: int = 128) -> np.ndarray:
    """Pictures, uint8 (B, H, W, 3), of scaled latents (B, C, H, W)."""
    pictures = []
    for part in latents.split(batch):
        z = part.to(pipe.vae.dtype) / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
        x = pipe.vae.decode(z, return_dict=False)[0].float()
        pictures.append(((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(pictures)


def sample_latents(
    pipe: Any,
    text: Tensor,
    pooled: Tensor,
    prompt: Tensor,
    *,
    seed: int,
    batch: int,
    label: str,
    empty: tuple[Tensor, Tensor] | None = None,
    **call: Any,
) -> Tensor:
    """Samples of a pipeline as float32 latents (N, C, H, W), one for each entry of `prompt` (indices into `text`).

    The noise of a sample depends on the seed and its place only, so two calls with the same seed are comparable picture
    by picture. `empty` are the embeddings of the empty prompt, (1, L, D) and (1, E), needed with classifier-free
    guidance. `call` goes to the pipeline.
    """
    denoiser = pipe.transformer
    like = {"device": denoiser.device, "dtype": denoiser.dtype}
    size = [denoiser.config.sample_size] * 2
    noise = torch.randn(len(prompt), denoiser.config.in_channels, *size, generator=torch.Generator().manual_seed(seed))
    pipe.set_progress_bar_config(disable=True)
    latents = []
    for rows in tqdm(torch.arange(len(prompt)).split(batch), desc=label, unit=f"x{batch}", disable=not label):
        unguided = {}
        if empty is not None:
            unguided = {
                "negative_prompt_embeds": empty[0].expand(len(rows), -1, -1).to(**like),
                "negative_pooled_prompt_embeds": empty[1].expand(len(rows), -1).to(**like),
            }
        out = pipe(
            prompt_embeds=text[prompt[rows]].to(**like),
            pooled_prompt_embeds=pooled[prompt[rows]].to(**like),
            latents=noise[rows].to(**like),
            output_type="latent",
            **unguided,
            **call,
        )
        latents.append(out.images.float().cpu())
    return torch.cat(latents)


def sample_pool(
    pipe: Any,
    prompts: Sequence[str],
    reward: Reward,
    *,
    size: int,
    seed: int,
    batch: int,
    reward_name: str,
    dtype: torch.dtype = torch.float32,
    label: str = "pool",
    **call: Any,
) -> Pool:
    """Sample `size` pictures, each prompt about equally often, and score them.

    Args:
        dtype: bf16 samples under autocast, which is faster on hardware that has it.
        call: arguments of the pipeline's call, such as num_inference_steps and guidance_scale.

    Raises:
        RewardError: scores that are NaN or outside [0, 1].
    """
    text, pooled = encode_prompts(pipe, prompts, call)
    prompt = torch.arange(size) % len(prompts)
    with autocast(pipe.transformer.device, dtype):
        latents = sample_latents(pipe, text, pooled, prompt, seed=seed, batch=batch, label=f"{label}: sampling", **call)
        pictures = decode_latents(pipe, latents.to(pipe.transformer.device))
    r = checked_scores(reward(pictures, [prompts[i] for i in prompt.tolist()]), size, reward_name)
    return Pool(latents.half(), prompt, text.cpu(), pooled.cpu(), torch.from_numpy(r))


def check_pool(pool: Pool, name: str) -> None:
    """Whether a reward can be learned from this pool.

    Raises:
        PoolError: every sample has the same score, or hardly any is good or bad.
    """
    mean, spread = pool.r.mean().item(), pool.r.std().item()
    enough = 0.01 <= mean <= 0.99 and spread > 1e-3
    if not enough:
        raise PoolError(
            f"reward {name!r} averages {mean:.4f} with spread {spread:.4f} over {len(pool)} samples of the base model; "
            "expected an average from 0.01 to 0.99. Where everything is good or everything is bad there is nothing to "
            "learn: choose other prompts, or a reward that tells the base model's samples apart"
        )


def pool_key(settings: dict[str, Any]) -> str:
    """A short hash of what a pool depends on."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def save_pool(pool: Pool, path: Path, key: str) -> None:
    """Write a pool to one safetensors file, whole or not at all."""
    tensors = {name: getattr(pool, name).contiguous() for name in ("latents", "prompt", "text", "pooled", "r")}
    atomic_write_bytes(path, save(tensors, metadata={"pool_key": key}))


def load_pool(path: Path, key: str) -> Pool | None:
    """The pool in `path` if it was made with the same settings; None if there is none or it belongs to others."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("pool_key") != key:
                return None
            return Pool(**{name: file.get_tensor(name) for name in ("latents", "prompt", "text", "pooled", "r")})
    except (SafetensorError, OSError) as error:
        raise PoolError(
            f"{path} cannot be read as a pool: {error}. Delete it; the run will sample a new one"
        ) from error
