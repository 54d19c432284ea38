"""`diffusion-nft demo`: train a small adapter, sample it at four strengths, and hold it against its promise."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nft_pipeline.models import MODELS

if TYPE_CHECKING:
    from .measure import Point, Workload
    from .worlds import DemoWorld

DEFAULT = "emoji"
HELP = "train a small adapter before your eyes and measure it"
STRENGTHS = (0.0, 0.5, 1.0, 2.0)
WEIGHTS = (0.25, 0.5, 0.75, 1.0, 1.5)
SEED = 90_001  # for the noise that is measured on, which is neither the training pool's nor the held-out pool's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `diffusion-nft demo`."""
    parser.description = (
        "Trains an adapter on a shipped model, samples held-out prompts at strength 0, 0.5, 1 and 2, and writes "
        "pictures, table and adapter. On the emoji model the reward is 'the thing is drawn in 3-D, where the prompt "
        "leaves the style open', on the shapes model 'red or orange, where the prompt leaves the colour open'. Four to "
        "six minutes on two cores. The exit code is 1 if guidance did not help."
    )
    parser.add_argument(
        "--model", choices=MODELS, default=DEFAULT, help=f"the shipped model to run on (default: {DEFAULT})"
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to write (default: demo)")
    parser.add_argument(
        "--n",
        type=int,
        default=180,
        help="pictures per strength (default: 180, an error of about 0.04 on each rate); raise it for narrower "
        "numbers, lower it if you only want to see the pictures",
    )
    parser.add_argument("--steps", type=int, help="training steps (default: the preset's); fewer is faster and weaker")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training run (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Train, sample, compare with the promise; 1 if guidance did not help."""
    from nft_pipeline import DiffusionNFTPipeline

    from ..devices.precision import choose_precision
    from ..learn.calibration import calibration_table, plot_reliability
    from ..rewards.find import find_prompts, find_reward
    from ..run.trainer import train
    from ..settings.config import TrainConfig
    from .measure import CALIBRATED, Workload, measure_base, measure_laws, measure_lora_weight
    from .report import law_table, plot_promise, rival_table
    from .worlds import DEMOS

    started = time.monotonic()
    if args.n < 30:
        raise ValueError(f"--n is {args.n}, expected at least 30: fewer pictures cannot tell whether guidance helped")
    out: Path = args.out
    world = DEMOS[args.model]
    # The demo measures for itself, with more pictures than a run's own grids and sweep take.
    overrides: dict[str, Any] = {"seed": args.seed, "samples_every": 0, "sweep_size": 0}
    overrides |= {"steps": args.steps} if args.steps else {}
    config = TrainConfig.from_yaml(world.preset, overrides)
    result = train(config, out / "run")
    guided = DiffusionNFTPipeline.from_pretrained(args.model, nft_adapter=result.adapter)
    reward = find_reward(config.reward)
    dtype, _ = choose_precision("auto", guided.transformer.device)
    held_out, call = find_prompts(world.held_out), dict(guided.call_defaults)
    work = Workload(held_out, n=args.n, seed=SEED, batch=120, call=call, dtype=dtype, quality=world.quality)
    tilts = [strength * config.tilt for strength in STRENGTHS]
    base = measure_base(guided.unwrap(), work, reward)
    guided.load_nft_adapter(result.adapter)
    ways = (
        CALIBRATED if result.adapter.config.dial is not None else "odds",
    )  # a run too small to calibrate has no map
    points = measure_laws(guided, work, reward, base, tilts, ways)
    grid = strengths_grid(guided, world)
    rivals = measure_lora_weight(guided.unwrap(), result.folder, work, reward, base, WEIGHTS)

    grid.save(out / "strengths.png")
    title = f"{config.name}, one training run, n = {args.n} per point"
    plot_promise([points], rivals, out / "promise.png", title, world.quality_words)
    if result.calibration:  # a run that was finished before has its own in its report
        plot_reliability(result.calibration, out / "alpha.png", "alpha on held-out samples")
    seconds = time.monotonic() - started
    again = "The run was finished before; run/report.html has it."
    alpha = calibration_table(result.calibration) if result.calibration else again
    tables = (law_table(points, rivals), rival_table(rivals), alpha)
    table = _text(args.model, world, work, base, tables, seconds)
    (out / "table.md").write_text(table, encoding="utf-8")
    (out / "table.json").write_text(
        json.dumps([point.to_dict() for point in (base, *points, *rivals)], indent=2) + "\n", encoding="utf-8"
    )
    shutil.copytree(result.folder, out / "adapter", dirs_exist_ok=True)
    print(table)
    print(f"Written to {out}: strengths.png, promise.png, alpha.png, table.md, table.json, adapter")
    return _verdict(base, points)


def strengths_grid(guided: Any, world: DemoWorld) -> Any:
    """One row per prompt and one column per strength, with the same noise along a row."""
    import torch

    from nft_pipeline.grid import labelled_grid

    columns = []
    guided.set_progress_bar_config(disable=True)
    for strength in STRENGTHS:
        generators = [torch.Generator().manual_seed(SEED + i) for i in range(len(world.pictured))]
        columns.append(guided(list(world.pictured), nft_strength=strength, generator=generators).images)
    rows = [[column[i] for column in columns] for i in range(len(world.pictured))]
    labels = [f"strength {strength:g}" for strength in STRENGTHS]
    title = f"Reward: {world.reward}"
    return labelled_grid(rows, list(world.pictured), labels, scale=3, title=title)


def _text(
    model: str, world: DemoWorld, work: Workload, base: Point, tables: tuple[str, str, str], seconds: float
) -> str:
    laws, rivals, alpha = tables
    return f"""# Demo: reward guidance on the {model} model

Reward: {world.reward}. Held-out prompts and noise, n = {work.n} pictures per row,
{work.call["num_inference_steps"]} steps, no classifier-free guidance, one training run.
Base rate {base.rate:.3f}, quality {base.quality:.3f} ({world.quality_words}).

{laws}

The rival, the same LoRA in one pass with its weight scaled:

{rivals}

The alpha head on held-out samples:

{alpha}

Took {seconds:.0f} s after installation.
"""


def _verdict(base: Point, points: list[Point]) -> int:
    """0 if the strongest setting raised the rate by at least 0.1 and by three standard errors, else 1."""
    strongest = max(points, key=lambda point: point.setting)
    needed = max(0.1, 3 * (strongest.error**2 + base.error**2) ** 0.5)
    helped = strongest.rate - base.rate >= needed
    words = f"{strongest.method}, P(o=1) {base.rate:.3f} -> {strongest.rate:.3f} at strength {STRENGTHS[-1]:g}"
    print(f"Guidance helped: {words}" if helped else f"Guidance did not help: {words}; expected {needed:.3f} more")
    return 0 if helped else 1
