"""The shipped emoji-3d beside its promise and beside LoRA weight, on prompts and noises that nothing was learned from.

    python tests/benchmarks/emoji_3d.py --work runs/emoji-3d --write
    python tests/benchmarks/emoji_3d.py --sheet --write       # the contact sheet alone, a minute

Beside it stand a run with the same settings on pictures of the prompts alone, which --work keeps, and the base model
with "3d" in its prompts. --write makes docs/measured/emoji_3d.md and the pictures of it and of the README.
"""

from __future__ import annotations

import argparse
import platform
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.models import shipped_adapter
from nft_pipeline.training.demo.demo_command import strengths_grid
from nft_pipeline.training.demo.measure import (
    CALIBRATED,
    Point,
    Workload,
    measure_base,
    measure_laws,
    measure_lora_weight,
    measure_pictures,
)
from nft_pipeline.training.demo.report import law_table, markdown, plot_promise, rival_table
from nft_pipeline.training.demo.worlds import DEMOS
from nft_pipeline.training.devices.precision import choose_precision
from nft_pipeline.training.rewards.find import find_prompts, find_reward
from nft_pipeline.training.run.trainer import train
from nft_pipeline.training.settings.config import TrainConfig

DOCS = Path(__file__).parents[2] / "docs"
ADAPTER = "emoji-3d"
SHEET_SIZE = 100
TILTS = (-2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
WEIGHTS = (-0.5, -0.25, 0.25, 0.5, 0.75, 1.0, 1.25)
ALONE: dict[str, Any] = {"pool_wordings": [], "sweep_size": 0, "samples_every": 0, "calibration_pictures": 0}
PAGE = """# The shipped emoji-3d

Made by `python tests/benchmarks/emoji_3d.py --work WORK --write` on {date} ({machine} CPU, {precision}, torch {torch}).
The reward is `emoji_3d`: {reward}.
n = {n} pictures per row of {prompts} prompts that were not trained on, with noises of their own, {steps} steps,
no classifier-free guidance. Quality is the {quality}.
One training run of the preset `emoji_3d`, calibrated with 3,000 pictures by `diffusion-nft calibrate`.

The calibrated dial is in the mode `{mode}`. The promise is p e^λ / (1 - p + p e^λ) for each prompt and then averaged
(M10 and M11 in [theory.md](../theory.md)), up to what the calibration says that the adapter reaches. Without guidance
{base:.3f} of these pictures are liked, and the rates of prompts differ with a standard deviation of {spread:.3f}. The
calibration drew the same prompts with other noises.

{laws}

The rival, the same LoRA in one pass with its weight scaled:

{rivals}

![Promise and measurement](../pictures/emoji_3d.png)

The most that any row reaches is {reach:.2f}.

## What it learned from

The preset draws its pool with the style named in turn: {wordings}.
The pictures are learned under the prompt that leaves it open. Below, the same settings on pictures of the prompts
alone, seed {seed}, and the base model with "3d" in the prompt, which needs no adapter and has no degrees:

{learned}
"""
SHEET_TITLE = "\n## A hundred pictures at 0 and at 1\n"
SHEET = (
    SHEET_TITLE
    + """
{n} held-out prompts in random order, none chosen, drawn once each by `python tests/benchmarks/emoji_3d.py --sheet
--write`. The base model's pictures are on the left, those at strength 1 on the right, with the same noise in the same
place.

![A hundred pictures of the base model, and beside them the same noise at strength 1](../pictures/emoji_3d_sheet.jpg)

The judge sees 3-D in {solid_0} of them at 0 and in {solid_1} at 1. {gained} became 3-D, {lost} no longer are. All that
the prompt names is right in {right_0} and in {right_1}; {broken} were right and are not at 1, {mended} the other way
round.

What one sees: faces change most, from flat discs to shaded ones with larger eyes, and some take on another expression.
Hearts and fruit gain light and shade. Most animals, buildings and tools look nearly alike on both sides; the judge
calls some of them 3-D for changes that are hard to see. What is a blur on the left stays one on the right: food, tools
and animals on black most of all. The adapter sharpens nothing.
"""
)


def learned_from(work: Workload, folder: Path, base: Point) -> str:
    """The table of what else the LoRA could have learned from, in one pass each."""
    config = TrainConfig.from_yaml("emoji_3d", {**ALONE, "name": "emoji-3d-alone"})
    if not (folder / "adapter/nft_config.json").is_file():
        train(config, folder)
    stock, reward = DiffusionNFTPipeline.from_pretrained("emoji").unwrap(), find_reward("emoji_3d")
    alone = measure_lora_weight(stock, folder / "adapter", work, reward, base, (0.5, 1.0, 1.5))[1:]
    named = replace(work, prompts=[f"3d {prompt}" for prompt in work.prompts])
    rate, quality = measure_pictures(named.pictures(stock, "named"), work.texts(), reward, work.quality)
    rows = [("pictures of the prompts alone", f"LoRA weight {p.setting:g}", p) for p in alone]
    rows.append(("nothing, 3d in the prompt", "", Point("named", 0.0, work.n, rate, quality)))
    cells = [[what, how, f"{p.rate:.3f} ± {p.error:.3f}", f"{p.quality:.3f}"] for what, how, p in rows]
    return markdown(["learned from", "setting", "measured P(o=1)", "quality"], cells)


def sheet() -> tuple[str, Image.Image]:
    """The section of the page about the contact sheet, and the sheet: a hundred base pictures, and those at 1."""
    pipe = DiffusionNFTPipeline.from_pretrained("emoji", nft_adapter=ADAPTER)
    prompts = np.random.default_rng(0).permutation(find_prompts(DEMOS["emoji"].held_out))[:SHEET_SIZE].tolist()
    dtype, _ = choose_precision("auto", pipe.transformer.device)
    work = Workload(prompts, SHEET_SIZE, seed=70_002, batch=SHEET_SIZE, call=dict(pipe.call_defaults), dtype=dtype)
    drawn = [work.pictures(pipe, f"strength {strength:g}", nft_strength=strength) for strength in (0.0, 1.0)]
    solid, right = (
        [find_reward(name)(pictures, prompts) > 0.5 for pictures in drawn] for name in ("emoji_3d", "emoji_right")
    )
    section = SHEET.format(
        n=SHEET_SIZE,
        solid_0=solid[0].sum(),
        solid_1=solid[1].sum(),
        gained=(~solid[0] & solid[1]).sum(),
        lost=(solid[0] & ~solid[1]).sum(),
        right_0=right[0].sum(),
        right_1=right[1].sum(),
        broken=(right[0] & ~right[1]).sum(),
        mended=(~right[0] & right[1]).sum(),
    )
    halves = [pictures.reshape(10, -1, *pictures.shape[1:]).swapaxes(1, 2) for pictures in drawn]
    halves = [half.reshape(half.shape[0] * half.shape[1], -1, 3) for half in halves]
    gap = np.full((len(halves[0]), 16, 3), 255, np.uint8)
    return section, Image.fromarray(np.concatenate([halves[0], gap, halves[1]], 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1020, help="pictures per row (default: 1020)")
    parser.add_argument("--work", type=Path, help="folder for the run on pictures of the prompts alone")
    parser.add_argument("--write", action="store_true", help="write the page and its pictures")
    parser.add_argument(
        "--sheet", action="store_true", help="draw the contact sheet alone, and leave the rest of the page"
    )
    args = parser.parse_args()
    page = DOCS / "measured/emoji_3d.md"
    if args.sheet:
        section, picture = sheet()
        print(section)
        if args.write:
            picture.save(DOCS / "pictures/emoji_3d_sheet.jpg", quality=82, optimize=True)
            page.write_text(page.read_text(encoding="utf-8").partition(SHEET_TITLE)[0] + section, encoding="utf-8")
        return
    if args.work is None:
        parser.error("--work is missing: a folder for the run on pictures of the prompts alone")
    world, folder = DEMOS["emoji"], shipped_adapter(ADAPTER)
    assert folder is not None
    pipe = DiffusionNFTPipeline.from_pretrained("emoji", nft_adapter=ADAPTER)
    dtype, precision = choose_precision("auto", pipe.transformer.device)
    prompts, reward, preset = find_prompts(world.held_out), find_reward("emoji_3d"), TrainConfig.from_yaml(world.preset)
    call = dict(pipe.call_defaults)
    work = Workload(prompts, args.n, seed=70_001, batch=128, call=call, dtype=dtype, quality=world.quality)
    mode = pipe.promise(strength=1).mode
    base = measure_base(pipe.unwrap(), work, reward)
    pipe.load_nft_adapter(ADAPTER)
    points = measure_laws(pipe, work, reward, base, TILTS, [CALIBRATED])
    grid = strengths_grid(pipe, world)
    rivals = measure_lora_weight(pipe.unwrap(), folder, work, reward, base, WEIGHTS)
    text = PAGE.format(
        date=date.today().isoformat(),
        machine=platform.machine(),
        precision=precision.partition(":")[0],
        torch=torch.__version__,
        reward=world.reward,
        n=args.n,
        prompts=len(prompts),
        steps=call["num_inference_steps"],
        quality=world.quality_words,
        mode=mode,
        base=base.rate,
        spread=base.spread,
        laws=law_table(points, rivals),
        rivals=rival_table(rivals),
        reach=max(point.rate for point in (*points, *rivals)),
        wordings=", ".join(f"`{wording}`" for wording in preset.pool_wordings),
        seed=preset.seed,
        learned=learned_from(work, args.work, base),
    )
    print(text)
    if args.write:
        section = "".join(page.read_text(encoding="utf-8").partition(SHEET_TITLE)[1:]) if page.is_file() else ""
        page.write_text(text + section, encoding="utf-8")
        title = f"{ADAPTER}, n = {args.n} per point"
        plot_promise([points], rivals, DOCS / "pictures/emoji_3d.png", title, world.quality_words)
        grid.save(DOCS / "pictures/demo_strengths.png", optimize=True)


if __name__ == "__main__":
    main()
