"""Train the VAE of the shapes model: both directions between pictures and the latents of `latents.py`."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F
from tqdm import tqdm

from ..devices.precision import autocast, choose_precision
from .latents import PatchComponents
from .parts import Sizes, build_vae
from .world import draw, sample_scene

LATENT_NOISE = 0.2  # at most, of the scaled latents: the decoder learns to ignore the noise that a sampler leaves
POSTERIOR = 0.05  # standard deviation of the encoder's posterior, in scaled latents; not learned


def train_vae(steps: int, scenes: int, batch: int = 32, seed: int = 0) -> AutoencoderKL:
    """The VAE of the shapes model, from drawn scenes: so many steps on so many pictures each."""
    rng = np.random.default_rng(seed)
    sizes = Sizes()
    components = PatchComponents.of_drawn_scenes(sizes.latent_channels)
    pictures = np.stack([draw(sample_scene(rng, stray=1)) for _ in tqdm(range(scenes), desc="scenes")])
    return learn_vae(sizes, components, lambda n: pictures[rng.integers(scenes, size=n)], steps, batch, seed=seed)


def learn_vae(
    sizes: Sizes,
    components: PatchComponents,
    pictures: Callable[[int], np.ndarray],
    steps: int,
    batch: int = 32,
    lr: float = 3e-3,
    seed: int = 0,
) -> AutoencoderKL:
    """The decoder draws from exact, slightly noisy latents (L1 + MSE); the encoder learns those latents (MSE).

    SD3 tools scale latents by fixed numbers, z -> (z - 0.0609) * 1.5305; both halves of the VAE work on that z.

    Args:
        sizes: of the model.
        components: what the scaled latents are.
        pictures: n of them at random, uint8 (n, 64, 64, 3).
        steps: of the optimiser.
        batch: pictures per step.
        lr: the highest learning rate.
        seed: of the weights and the noise.
    """
    torch.manual_seed(seed)
    dtype, _ = choose_precision("auto", torch.device("cpu"))
    vae = build_vae(sizes)
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor
    half = vae.config.latent_channels
    with torch.no_grad():
        vae.encoder.conv_out.weight[half:] = 0.0
        vae.encoder.conv_out.bias[half:] = 2 * math.log(POSTERIOR / scale)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, weight_decay=1e-4, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    start, bar = time.monotonic(), tqdm(range(steps), desc="vae", smoothing=0.05)
    for step in bar:
        chosen = pictures(batch)
        x = torch.from_numpy(chosen).permute(0, 3, 1, 2).float() / 127.5 - 1.0
        latents = components.encode(chosen)
        noise = LATENT_NOISE * torch.rand(batch, 1, 1, 1) * torch.randn_like(latents)
        with autocast(x.device, dtype):
            y = vae.decode((latents + noise) / scale + shift).sample.float()
            z = (vae.encode(x).latent_dist.mode().float() - shift) * scale
        l1, encoder_mse = F.l1_loss(y, x), F.mse_loss(z, latents)
        optimizer.zero_grad(set_to_none=True)
        (l1 + F.mse_loss(y, x) + encoder_mse).backward()
        torch.nn.utils.clip_grad_norm_(vae.decoder.parameters(), 1.0)
        torch.nn.utils.clip_grad_norm_(vae.encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            report = f"l1 {l1.item():.4f} encoder mse {encoder_mse.item():.4f}"
            bar.set_postfix_str(report)
            print(f"step {step} {report} {time.monotonic() - start:.0f}s", flush=True)
    return vae.eval()


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write the VAE into")
    parser.add_argument("--steps", type=int, default=2400, help="optimiser steps; fewer leaves soft edges")
    parser.add_argument("--scenes", type=int, default=12_000, help="drawn pictures to train on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    vae = train_vae(args.steps, args.scenes, seed=args.seed)
    vae.save_pretrained(args.out)


if __name__ == "__main__":
    main()
