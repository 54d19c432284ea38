"""Train the VAE of the shapes model on drawn scenes (a quarter of an hour on two shared cores)."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F
from tqdm import tqdm

from ..precision import autocast, choose_precision
from .parts import Sizes, build_vae
from .world import draw, sample_scene

LATENT_NOISE = 0.08  # of the unscaled latents while training: keeps the decoder calm about what a sampler leaves over


def drawn_batch(rng: np.random.Generator, size: int) -> torch.Tensor:
    """`size` drawn scenes as float32 (B, 3, 64, 64) in [-1, 1]."""
    pictures = np.stack([draw(sample_scene(rng)) for _ in range(size)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def train_vae(steps: int, batch: int = 32, lr: float = 2e-3, seed: int = 0) -> AutoencoderKL:
    """Reconstruction (L1 + MSE) with noisy latents, and a penalty that gives every channel SD3's mean and spread.

    SD3 tools scale latents by fixed numbers, z -> (z - 0.0609) * 1.5305, so the raw latents are trained to mean 0.0609
    and standard deviation 1 / 1.5305, which makes the scaled ones standard.
    """
    torch.manual_seed(seed)
    dtype, _ = choose_precision("auto", torch.device("cpu"))
    rng = np.random.default_rng(seed)
    vae = build_vae(Sizes())
    mean, std = vae.config.shift_factor, 1.0 / vae.config.scaling_factor
    half = vae.encoder.conv_out.out_channels // 2
    with torch.no_grad():  # the posterior's variance is not learned: it is the training noise
        vae.encoder.conv_out.weight[half:] = 0.0
        vae.encoder.conv_out.bias[half:] = 2 * math.log(LATENT_NOISE)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, weight_decay=1e-4, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    start, bar = time.monotonic(), tqdm(range(steps), desc="vae", smoothing=0.05)
    for step in bar:
        x = drawn_batch(rng, batch)
        with autocast(x.device, dtype):
            z = vae.encode(x).latent_dist.mode().float()
            y = vae.decode(z + LATENT_NOISE * torch.randn_like(z)).sample.float()
        moments = (z.mean((0, 2, 3)) - mean).square().mean() + (z.std((0, 2, 3)) - std).square().mean()
        loss = F.l1_loss(y, x) + F.mse_loss(y, x) + 0.1 * moments
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            bar.set_postfix(l1=f"{F.l1_loss(y, x).item():.4f}", moments=f"{moments.item():.4f}")
            print(f"step {step} l1 {F.l1_loss(y, x).item():.4f} {time.monotonic() - start:.0f}s", flush=True)
    return vae.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write the VAE into")
    parser.add_argument("--steps", type=int, default=2400, help="optimiser steps; fewer leaves soft edges")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    vae = train_vae(args.steps, seed=args.seed)
    vae.save_pretrained(args.out)


if __name__ == "__main__":
    main()
