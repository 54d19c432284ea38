"""Train the judge of the emoji world on the true pictures, made worse in the ways a sampler makes them worse."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..devices.precision import autocast, choose_precision
from .contents import Contents
from .examples import EmojiTraining, Pictures
from .judge import Judge, save_judge
from .pictures import STYLES, fetch
from .world import World

NOISE = 0.6  # at most, of the scaled latents, before they are decoded again


class Spoilt:
    """True pictures as a sampler might draw them: noisy latents decoded by the model's own VAE, moved and tinted."""

    def __init__(self, pictures: Pictures, vae: AutoencoderKL, seed: int) -> None:
        self.pictures, self.vae = pictures, vae
        self.rng, self.latents = np.random.default_rng(seed), pictures.latents_of(pictures.every)
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def batch(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """n pictures in [-1, 1], (n, 3, 64, 64), the number of what each shows and that of its style."""
        whole, styles = self.pictures.every, len(STYLES)
        signs = self.rng.binomial(n, 0.05)
        chosen = self.rng.integers(len(whole), size=n - signs)
        latents = torch.cat(
            [
                self.pictures.signs[self.rng.integers(len(self.pictures.signs), size=signs)],
                self.latents[chosen],
            ]
        ).float()
        spread = NOISE * torch.rand(n, 1, 1, 1, generator=self.generator) ** 2
        latents = latents + spread * torch.randn(latents.shape, generator=self.generator)
        config = self.vae.config
        x = self.vae.decode(latents / config.scaling_factor + config.shift_factor).sample.clamp(-1, 1)
        x = torch.roll(x, tuple(int(i) for i in self.rng.integers(-2, 3, size=2)), (2, 3))
        things = [len(self.pictures.world.things)] * signs + [whole[i][0] for i in chosen]
        return (
            x,
            torch.tensor(things),
            torch.tensor([self.rng.integers(styles)] * signs + [whole[i][1] for i in chosen]),
        )


def train_judge(spoilt: Spoilt, steps: int, batch: int = 96, lr: float = 2e-3, seed: int = 0) -> Judge:
    """By cross-entropy on the thing and on the style."""
    torch.manual_seed(seed)
    world = spoilt.pictures.world
    judge = Judge.of(Contents.of(world))
    dtype, _ = choose_precision("auto", torch.device("cpu"))
    optimizer = torch.optim.AdamW(judge.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    start, right = time.monotonic(), []
    for step in (bar := tqdm(range(steps), desc="judge", smoothing=0.05)):
        x, things, styles = spoilt.batch(batch)
        with autocast(x.device, dtype):
            of_thing, of_style = judge(x)
        is_thing = things < len(world.things)
        loss = F.cross_entropy(of_thing.float(), things, label_smoothing=0.05)
        loss = loss + F.cross_entropy(of_style.float()[is_thing], styles[is_thing])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        right.append((of_thing.argmax(-1) == things).float().mean().item())
        if (step + 1) % 100 == 0:
            bar.set_postfix(right=f"{np.mean(right[-100:]):.3f}")
            print(f"step {step + 1} right {np.mean(right[-100:]):.3f} {time.monotonic() - start:.0f}s", flush=True)
    return judge.eval()


@torch.no_grad()
def accuracy(judge: Judge, spoilt: Spoilt) -> dict[str, float]:
    """How often the judge is right on the true pictures, and on pictures that were made worse."""
    world, rights = spoilt.pictures.world, []
    for thing, style, background in spoilt.pictures.every[:: max(1, len(spoilt.pictures.every) // 3000)]:
        shown = judge.look(spoilt.pictures.composed(thing, style, background)[None])[0]
        rights.append((shown.thing == world.things[thing].name, shown.style == list(STYLES)[style]))
    x, things, styles = spoilt.batch(1000)
    of_thing, of_style = judge(x)
    is_thing = things < len(world.things)
    return {
        "thing, true pictures": float(np.mean([right[0] for right in rights])),
        "style, true pictures": float(np.mean([right[1] for right in rights])),
        "thing, made worse": float((of_thing.argmax(-1) == things).float().mean()),
        "style, made worse": float((of_style.argmax(-1) == styles)[is_thing].float().mean()),
    }


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", type=Path, help="folder of the npm packages; what is missing is fetched")
    parser.add_argument("vae", type=Path, help="folder written by train_vae")
    parser.add_argument("out", type=Path, help="folder of the emoji model, which the judge is put into")
    parser.add_argument("--steps", type=int, default=2500)
    args = parser.parse_args()
    pictures = Pictures(World.of(fetch(args.packages)), EmojiTraining())
    vae = AutoencoderKL.from_pretrained(args.vae).eval()
    judge = train_judge(Spoilt(pictures, vae, seed=0), args.steps)
    save_judge(judge, args.out)
    for name, share in accuracy(judge, Spoilt(pictures, vae, seed=1)).items():
        print(f"{name}: {share:.3f}")


if __name__ == "__main__":
    main()
