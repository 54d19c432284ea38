"""Two rewards at once on the emoji model: one adapter trained on their product beside the sum of two adapters.

    python -m tests.benchmarks.emoji_both --work runs/emoji-both --out both.md

Trains two adapters with the settings of the preset emoji_3d, `both` on emoji_3d times emoji_dark and `dark` on
emoji_dark alone, and takes the shipped emoji-3d for the other half of the sum. Measured on held-out prompts that name
neither style nor background, the same noise in every row. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.models import shipped_adapter
from nft_pipeline.training.demo.measure import Workload
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.demo.worlds import DEMOS
from nft_pipeline.training.devices.precision import choose_precision
from nft_pipeline.training.emoji.judge import load_judge
from nft_pipeline.training.rewards.find import find_prompts
from nft_pipeline.training.run.trainer import train
from nft_pipeline.training.settings.config import TrainConfig

OPEN = {"prompts": "emoji_open", "held_out_prompts": "emoji_open_held_out", "watch_reward": "emoji_right"}
NO_SHOW = {"samples_every": 0, "sweep_size": 0}
SAME = {**OPEN, **NO_SHOW, "pool_size": 1536, "pool_wordings": [], "held_out_size": 256, "steps": 160}
RUNS: dict[str, dict[str, Any]] = {
    "both": {
        "reward": "",
        "rewards": {"emoji_3d": 1.0, "emoji_dark": 1.0},
        "mix": "product",
        "reward_description": "drawn in 3-D on a black background",
    },
    "dark": {"reward": "emoji_dark", "reward_description": "on a black background"},
}
STRENGTHS = (0.5, 1.0, 1.5, 2.0)
WEIGHTS = (0.5, 1.0)
PAGE = """# Two rewards at once

Made by `python -m tests.benchmarks.emoji_both` on {date} ({machine} CPU, {precision}, torch {torch}). The
rewards are `emoji_3d` and `emoji_dark` on the emoji model, both judged by its judge. `both` is one adapter trained on
their product (`mix: product`), `dark` one trained on `emoji_dark` alone, each one run of seed 0 with the settings of
the preset `emoji_3d`, but for a pool of {pool:,} pictures of the prompts alone and {steps} steps. emoji-3d is the
shipped adapter, which learned from pictures whose style was named. Neither of the two is shipped. The sum guides by
emoji-3d and `dark` at the same strength.

{prompts} held-out prompts that name neither style nor background, n = {n} pictures per row, the same noise in every
row, which no training and no calibration has seen. Quality is the {quality}. Errors are standard errors over pictures.

{table}
"""


def settings_of(name: str) -> TrainConfig:
    """One of `RUNS`."""
    return TrainConfig.from_yaml("emoji_3d", {**SAME, "name": f"emoji-{name}", **RUNS[name]})


def trained(name: str, work: Path) -> Path:
    """The adapter of one of `RUNS`, trained if it is not there."""
    if not (work / name / "adapter/nft_config.json").is_file():
        train(settings_of(name), work / name)
    return work / name / "adapter"


def rows(both: Path, dark: Path, work: Workload) -> Iterator[list[str]]:
    """The rows of the table."""

    def row(way: str, setting: str, pipe: Any, **steering: Any) -> list[str]:
        pictures = work.pictures(pipe, f"{way} {setting}", **steering)
        seen = load_judge().look(pictures)
        solid = np.array([shown.style == "3d" for shown in seen])
        black = np.array([shown.background == "black" for shown in seen])
        shares = [_share(solid & black), _share(solid), _share(black)]
        forwards = pipe.nft_stats.forwards / pipe.nft_stats.steps if steering else 1
        return [way, setting, f"{forwards:.2g}", *shares, f"{work.quality(pictures, work.texts()):.3f}"]

    joint = DiffusionNFTPipeline.from_pretrained("emoji", nft_adapter=str(both))
    yield row("base", "", joint.unwrap())
    joint.load_nft_adapter(str(both))
    for strength in STRENGTHS:
        yield row("`both`", f"strength {strength:g}", joint, nft_strength=strength)
    two = DiffusionNFTPipeline.from_pretrained("emoji", nft_adapter={"solid": "emoji-3d", "dark": str(dark)})
    for strength in STRENGTHS:
        yield row("emoji-3d + `dark`", f"strength {strength:g}", two, nft_strength=strength)
    folder = shipped_adapter("emoji-3d")
    for way, adapters in (("LoRA of `both`", [both]), ("LoRAs of emoji-3d and `dark`", [folder, dark])):
        stock = DiffusionNFTPipeline.from_pretrained("emoji").unwrap()
        names = [f"rival_{place}" for place in range(len(adapters))]
        for name, adapter in zip(names, adapters, strict=True):
            stock.load_lora_weights(adapter, weight_name="pytorch_lora_weights.safetensors", adapter_name=name)
        for weight in WEIGHTS:
            stock.set_adapters(names, [weight] * len(names))
            yield row(way, f"weight {weight:g}", stock)


def _share(liked: np.ndarray) -> str:
    rate, n = float(liked.mean()), len(liked)
    return f"{rate:.3f} ± {max(rate * (1 - rate), 0.25 / n) ** 0.5 / n**0.5:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the two runs")
    parser.add_argument("--n", type=int, default=306, help="pictures per row (default: 306)")
    parser.add_argument("--out", type=Path, help="write the page to this file")
    args = parser.parse_args()
    both, dark = trained("both", args.work), trained("dark", args.work)
    pipe = DiffusionNFTPipeline.from_pretrained("emoji")
    dtype, precision = choose_precision("auto", pipe.transformer.device)
    prompts, world = find_prompts("emoji_open_held_out"), DEMOS["emoji"]
    work = Workload(prompts, args.n, 72_001, 102, dict(pipe.call_defaults), dtype, world.quality)
    head = ["way", "setting", "forwards per step", "both", "3-D", "black", "quality"]
    text = PAGE.format(
        date=date.today().isoformat(),
        machine=platform.machine(),
        precision=precision.partition(":")[0],
        torch=torch.__version__,
        prompts=len(prompts),
        n=args.n,
        pool=SAME["pool_size"],
        steps=SAME["steps"],
        quality=world.quality_words,
        table=markdown(head, list(rows(both, dark, work))),
    )
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
