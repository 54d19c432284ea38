"""Train the emoji base model: the denoiser and both text encoders, by flow matching on composed pictures.

    python -m nft_pipeline.training.emoji.train_vae  packages/ vae/
    python -m nft_pipeline.training.emoji.train_base packages/ vae/ emoji/   # a StableDiffusion3Pipeline folder

Both fetch the packages of `pictures.py` into the first folder, if they are not there; `train_base` goes on where it was
stopped.

A caption names the style in half of the cases and the background in two fifths, and what it does not name is spread
evenly. One sign in five has a letter that its caption does not say, so the model writes words wrong often enough for a
reward to have work; `--misspelt-more` raises that share for a last stage. `--start` begins with a finished model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ..devices.precision import choose_precision
from ..shapes.train_base import MUON, TextAndDenoiser, build_optimizers, descend, flow_loss, load_vae, save
from .contents import Contents
from .examples import EmojiTraining, Pictures
from .parts import SIZES, build_emoji_tokenizer, copy_capitalised
from .pictures import fetch
from .world import World


def rate(step: int, settings: EmojiTraining) -> float:
    """The learning rate's factor at a step: up over 200 steps, level, then down to nothing."""
    left = (settings.steps - step) / (settings.decay * settings.steps)
    return min(1.0, (step + 1) / 200, max(0.01, left))


def train_base(
    world: World,
    vae: Path,
    settings: EmojiTraining,
    out: Path,
    start: Path | None = None,
    save_every: int = 250,
    saved: Callable[[int], None] | None = None,
) -> None:
    """Train, from the weights of the pipeline folder `start` if given, and save.

    The averaged weights are what is saved, every `save_every` steps. Beside the pipeline, `out`.checkpoint holds what
    going on needs; where it is, `start` has had its use. `saved` is called with the number of steps whenever the
    pipeline has been saved.
    """
    torch.manual_seed(settings.seed)
    dtype, _ = choose_precision("auto", torch.device("cpu"))
    pictures = Pictures(world, settings)
    model = TextAndDenoiser(SIZES, build_emoji_tokenizer(world.things))
    if start is not None:
        model.load(start)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.average))
    optimizers = build_optimizers(model, settings.lr, dtype)
    checkpoint, first, spent = out.with_name(out.name + ".checkpoint"), 0, 0.0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        first, spent = state["step"], state["seconds"]
        pictures.rng = np.random.default_rng((settings.seed, first))
        torch.manual_seed(settings.seed + first)
        print(f"going on at step {first}", flush=True)
    began, losses = time.monotonic() - spent, []
    for step in (bar := tqdm(range(first, settings.steps), desc="base", smoothing=0.05)):
        for optimizer, factor in zip(optimizers, (MUON, 1), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * factor * rate(step, settings)
        x_0, prompts = pictures.batch()
        loss = flow_loss(model, x_0, prompts, settings.shift, dtype, order=torch.randperm)
        descend(model, loss, optimizers)
        average.update_parameters(model)
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            bar.set_postfix(loss=f"{np.mean(losses[-50:]):.4f}")
            print(f"step {step + 1} loss {np.mean(losses[-50:]):.4f} {time.monotonic() - began:.0f}s", flush=True)
        if (step + 1) % save_every == 0 or step + 1 == settings.steps:
            written = checkpoint.with_name(checkpoint.name + ".part")
            torch.save(
                {
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "step": step + 1,
                    "seconds": time.monotonic() - began,
                },
                written,
            )
            written.replace(checkpoint)
            if (vae / "config.json").is_file():
                averaged = cast(TextAndDenoiser, average.module)
                copy_capitalised(averaged)
                save(averaged, load_vae(vae, SIZES), out)
                Contents.of(world).write(out)
                if saved is not None:
                    saved(step + 1)


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="folder of the npm packages; what is missing is fetched")
    parser.add_argument("vae", type=Path, help="folder written by train_vae; it may still be in training")
    parser.add_argument("out", type=Path, help="folder to write the pipeline into")
    parser.add_argument(
        "--start", type=Path, metavar="FOLDER", help="begin with the weights of this emoji model (default: with none)"
    )
    parser.add_argument("--steps", type=int, default=EmojiTraining.steps, help="fewer leaves things blurred")
    parser.add_argument("--seed", type=int, default=EmojiTraining.seed)
    parser.add_argument(
        "--misspelt-more",
        type=float,
        default=EmojiTraining.misspelt_more,
        metavar="SHARE",
        help="of the signs that are right, give this share a wrong letter too (default: none); for a last stage that "
        "leaves a reward more to teach",
    )
    parser.add_argument(
        "--average",
        type=float,
        default=EmojiTraining.average,
        help="of the running average of the weights (default: %(default)s); a short last stage wants it shorter",
    )
    args = parser.parse_args()
    settings = EmojiTraining(steps=args.steps, seed=args.seed, misspelt_more=args.misspelt_more, average=args.average)
    train_base(World.of(fetch(args.packages)), args.vae, settings, args.out, args.start)


if __name__ == "__main__":
    main()
