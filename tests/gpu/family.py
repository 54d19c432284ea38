"""One preset on the device: each phase of a run tried as `check` tries it, then a short run, both of random weights.

    python -m tests.gpu.family sdxl --work /tmp/gpu --device cuda --out sdxl.json

`python -m tests.gpu` starts this for each preset, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from nft_pipeline.training.data.folder import read_folder
from nft_pipeline.training.devices.memory import peak_within
from nft_pipeline.training.run.load import load_base
from nft_pipeline.training.run.trainer import train
from nft_pipeline.training.run.trial import Trial
from nft_pipeline.training.settings.config import TrainConfig
from nft_pipeline.training.settings.file import read_settings
from tests.benchmarks.whole_models import save, save_tiny

# Every word is one of the tiny tokenizers'; what they do not know is one token, too.
PROMPTS = [f"{what} " + "and two red cow " * 140 for what in ("a cat", "a dog", "a cow", "two cow")]
PICTURES = 8
# What a preset's memory does not depend on is as small as a few minutes want it; the rest is the preset's.
SMALL: dict[str, Any] = {
    "reward": "colourfulness",
    "optimality": "rank",
    "pool_size": 4,
    "held_out_size": 2,
    "pool_steps": 4,
    "steps": 3,
    "batch": 4,
    "head_batch": 2,
    "samples_every": 0,
    "sweep_size": 4,
    "sweep_strengths": [0.0, 1.0],
    "calibration_pictures": 0,
    "checkpoint_every": 0,
}


def settings_of(preset: str, model: Path, tiny: bool) -> dict[str, Any]:
    """The run's settings: the preset's own where memory depends on them."""
    prompts = model.parent / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS) + "\n")
    given: dict[str, Any] = {**SMALL, "name": f"gpu-{preset}", "base_model": str(model), "base_id": f"someone/{preset}"}
    given |= {"prompts": str(prompts), "held_out_prompts": str(prompts), "reward_description": "random weights"}
    if tiny:
        given |= {"resolution": None, "quantise": "none"}
    return read_settings(preset, given)


def folder_of(where: Path, size: tuple[int, int]) -> Path:
    """A folder of pictures of noise, (height, width), with prompts and scores."""
    where.mkdir(parents=True, exist_ok=True)
    noise, lines = np.random.default_rng(0), []
    for number in range(PICTURES):
        Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)).save(where / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "prompt": PROMPTS[0], "score": number / PICTURES}))
    (where / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return where


def measure(preset: str, work: Path, device: str, tiny: bool) -> dict[str, Any]:
    """Seconds and GiB of each phase, and of the short run.

    Args:
        preset: a preset of `tests.benchmarks.memory.MODELS`.
        work: a folder for the model and the run.
        device: of the run.
        tiny: take the tests' model in the place of one of published size.
    """
    where = torch.device(device)
    started = time.monotonic()
    model = save_tiny(preset, work / "model") if tiny else save(preset, work / "model", where)
    seconds = {"model written": time.monotonic() - started}
    config = TrainConfig.from_mapping(settings_of(preset, model, tiny))

    started = time.monotonic()
    with peak_within(where) as loading:
        base, reason = load_base(config, device)
    seconds["model loaded"] = time.monotonic() - started
    folder = read_folder(str(folder_of(work / "pictures", base.resolution)))
    trial = Trial(base, config, PROMPTS, folder)
    trial.steps(trial.pool())
    pace, peaks = trial.pace, dict(trial.peaks)
    ones = {
        "encoding prompts": pace.prompt,
        "encoding pictures": pace.encode,
        "drawing": pace.draw[1],
        "decoding": pace.decode,
        "training": pace.step / (config.batch + (config.head_batch if config.kind == "positive" else 0)),
    }
    del trial, base
    if where.type == "cuda":
        torch.cuda.empty_cache()

    started = time.monotonic()
    result = train(config, work / "run", device=device)
    seconds["the run"] = time.monotonic() - started
    losses = [json.loads(line) for line in (work / "run" / "losses.jsonl").read_text().splitlines()]
    return {
        "preset": preset,
        "computes": reason,
        "peaks": {"loading": loading.get("GiB", 0.0), **peaks},
        "phases": ones,
        "seconds": seconds,
        "run": result.seconds,
        "finite": all(np.isfinite(value) for row in losses for value in row.values() if isinstance(value, float)),
        "steps": len(losses),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        args.out.write_text(json.dumps(measure(args.preset, args.work, args.device, args.tiny)))
    finally:
        shutil.rmtree(args.work, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
