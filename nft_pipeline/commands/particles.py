"""`diffusion-nft sample --particles`: the pictures of a prompt and a seed are one group of sequential Monte Carlo.

They are samples of the odds law, drawn by the base model alone, one forward per step each (docs/search.md).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..adapters.config import AdapterConfig
    from ..engine.stats import NFTStats

# What says how the LoRA is applied, or how the noise of one picture is found: neither is done here. With its default.
_HAVE_NO_USE = {
    "law": None, "interval": [0.0, 1.0], "mode": None, "combine": "all", "candidates": None, "choose_after": None,
    "guide": "both", "cap": None,
}  # fmt: skip


def add_particles_argument(group: argparse._ActionsContainer) -> None:
    """--particles."""
    group.add_argument(
        "--particles",
        type=int,
        metavar="N",
        help="sequential Monte Carlo: draw N pictures of each prompt and seed together, with the base model alone, so "
        "that they are samples of the odds law (default: no). 16 keeps the law well, below 8 hardly; all N are drawn "
        "at once, whatever --batch says, and they are N rows of the grid. It needs an adapter with an alpha head and a "
        "flow-matching model; with --also the law is the product",
    )


def check_particles(args: argparse.Namespace) -> None:
    """Refuse what has no meaning beside --particles.

    Raises:
        ValueError: an option that says how the LoRA is applied or how one picture's noise is found.
    """
    if args.particles is None:
        return
    given = [name for name, default in _HAVE_NO_USE.items() if getattr(args, name) != default]
    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(
            f"--particles draws with the base model alone and chooses among noises itself, so {options} would do "
            "nothing; leave it out, or leave out --particles"
        )


def of_the_law(config: AdapterConfig) -> AdapterConfig:
    """The config by which particles are promised: they follow the odds law, whatever weight a calibration mapped."""
    return config if config.dial is None else replace(config, dial=None, base_rate=config.dial.rate)


def draw_groups(
    pipe: Any, rows: Sequence[tuple[str, int]], strengths: Sequence[float], particles: int, **call: Any
) -> tuple[list[list[Image]], list[list[NFTStats]], list[list[int]]]:
    """Draw a group of each row at every strength, with a progress bar; a row's groups start from the same noises.

    Args:
        pipe: the guided pipeline; its own progress bar is switched off.
        rows: (prompt, seed) of each.
        strengths: one per column.
        particles: pictures of a group.
        call: further arguments of the stock call.

    Returns:
        `columns[strength][row * particles + i]`, for each strength the stats of its groups, and for each strength how
        many noises of each group have descendants.

    Raises:
        GuidanceError: the pipeline, its scheduler or its adapters cannot do it, or `particles` is below 2.
    """
    import torch
    from tqdm import tqdm

    from ..call.particles import draw_particles
    from ..sampling import check_draws_pictures, pictures_of

    check_draws_pictures(pipe)
    pipe.set_progress_bar_config(disable=True)
    columns: list[list[Image]] = []
    stats: list[list[NFTStats]] = []
    survivors: list[list[int]] = []
    with tqdm(total=len(rows) * len(strengths) * particles, unit="picture") as bar:
        for strength in strengths:
            bar.set_description(f"strength {strength:g}")
            columns.append([])
            stats.append([])
            survivors.append([])
            for prompt, seed in rows:
                generator = torch.Generator("cpu").manual_seed(seed)
                drawn = draw_particles(
                    pipe, prompt, particles=particles, strength=strength, generator=generator, **call
                )
                columns[-1].extend(pictures_of(drawn.output, pipe))
                stats[-1].append(pipe.nft_stats)
                survivors[-1].extend(drawn.survivors)
                bar.update(particles)
    return columns, stats, survivors


def survivors_words(strength: float, survivors: Sequence[int], particles: int) -> str:
    """In a line, how many of a group's noises have descendants: the fewer, the more alike its pictures are."""
    mean = sum(survivors) / len(survivors)
    return f"strength {strength:.3g}: {mean:.3g} of {particles} noises have descendants among the pictures"
