"""Train the VAE of the emoji model: both directions between pictures and the leading components of their patches."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..shapes.train_vae import learn_vae
from .examples import EmojiTraining, Pictures
from .parts import SIZES
from .pictures import fetch
from .world import World


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", type=Path, help="folder of the npm packages; what is missing is fetched")
    parser.add_argument("out", type=Path, help="folder to write the VAE into")
    parser.add_argument("--steps", type=int, default=2400, help="optimiser steps; fewer leaves soft edges")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pictures = Pictures(World.of(fetch(args.packages)), EmojiTraining())
    vae = learn_vae(SIZES, pictures.components, pictures.draw, args.steps, seed=args.seed)
    vae.save_pretrained(args.out)


if __name__ == "__main__":
    main()
