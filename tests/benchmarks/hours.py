"""What `check` says a run will take, and what it took, for small runs of different kinds.

    python -m tests.benchmarks.hours --work runs/hours --write

Every run is checked and then trained, each in a process of its own. Counted is the clock's time with the base model
loaded, to the adapter with its report. Runs that the folder has already are not made again. --write keeps the page.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import yaml

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.devices.precision import choose_precision
from nft_pipeline.training.rewards.find import find_prompts, find_reward
from nft_pipeline.training.run import check as checking
from nft_pipeline.training.run import trainer
from nft_pipeline.training.settings.config import TrainConfig

PAGE = Path(__file__).parents[2] / "docs" / "measured" / "hours.md"
BAR = 0.25
DIAL = ("of it the calibration, said", "took")
PICTURES = 40
PAPER = {"objective": "paper", "optimality": "rank", "tilt": 2.0}
# Small runs, as different as runs are: objective, where the pictures come from, model, reward, and what is measured.
RUNS: dict[str, dict[str, Any]] = {
    "positive, calibrated": {"preset": "shapes_warm", "pool_size": 1024, "held_out_size": 256, "steps": 120},
    "paper, offline": {"preset": "shapes_warm", **PAPER, "pool_size": 1024, "steps": 160, "calibration_pictures": 0},
    "policy, online": {"preset": "shapes_follow", "rounds": 6},
    "forty pictures of a folder": {"preset": "shapes_warm", "data": "pictures"},
    "emoji, calibrated": {"preset": "emoji_3d", "pool_size": 512, "held_out_size": 128, "steps": 64},
    "emoji, online, words read": {"preset": "emoji_words", "rounds": 2},
}


def run_file(name: str, folder: Path) -> Path:
    """The settings of a run in a file, with the pictures beside it that it learns from."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**RUNS[name], "name": "hours"}
    if "data" in settings:
        pictures = folder / settings["data"]
        settings |= {"data": str(pictures), "reward": "", "prompts": None, "held_out_prompts": None}
        settings["reward_description"] = "warm colours"
        draw_rated(pictures)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def draw_rated(folder: Path) -> None:
    """Pictures of the shapes model, liked where they are warm."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    texts = find_prompts("shapes_warm")[:PICTURES]
    noise = [torch.Generator().manual_seed(seed) for seed in range(PICTURES)]
    pictures = DiffusionNFTPipeline.from_pretrained("shapes")(texts, generator=noise).images
    r = find_reward("shapes_warm")(np.stack([np.asarray(picture) for picture in pictures]), texts)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as lines:
        for number, (text, picture, score) in enumerate(zip(texts, pictures, r, strict=True)):
            picture.save(folder / f"{number}.png")
            line = {"image": f"{number}.png", "prompt": text, "liked": bool(score > 0.5)}
            lines.write(json.dumps(line) + "\n")


def predicted(path: Path, out: Path) -> dict[str, float]:
    """Seconds by phase, as `check` works them out."""
    found: list[dict[str, float]] = []
    seconds_of = checking.seconds_of

    def kept(*args: Any) -> dict[str, float]:
        found.append(seconds_of(*args))
        return found[-1]

    with patch.object(checking, "seconds_of", kept):
        faults = checking.check(path, {}, out, device="cpu")
    if faults:
        raise SystemExit("; ".join(faults))
    return found[0]


def taken(path: Path, out: Path) -> dict[str, float]:
    """Seconds by phase, as the run records them, and in "all" those from the loaded base model to the end."""
    loaded: list[float] = []
    load_base = trainer.load_base

    def timed(*args: Any) -> Any:
        base = load_base(*args)
        loaded.append(time.monotonic())
        return base

    with patch.object(trainer, "load_base", timed):
        result = trainer.train(TrainConfig.from_yaml(path), out, device="cpu")
    return {**result.seconds, "all": time.monotonic() - loaded[0]}


def measured(name: str, work: Path) -> dict[str, dict[str, float]]:
    """Both for a run, each in a process of its own; what is in `work` already is not measured again."""
    folder = work / name.replace(", ", "-").replace(" ", "-")
    found: dict[str, dict[str, float]] = {}
    path = None
    for what in ("predicted", "taken"):
        kept = folder / f"{what}.json"
        if not kept.is_file():
            path = path or run_file(name, folder)
            shutil.rmtree(folder / "out", ignore_errors=True)
            command = [sys.executable, "-m", "tests.benchmarks.hours", "--one", what, str(path)]
            subprocess.run(command, check=True)
        found[what] = json.loads(kept.read_text())
        print(f"{name}: {what} {json.dumps({phase: round(s) for phase, s in found[what].items()})}", flush=True)
    return found


def page(everything: dict[str, dict[str, dict[str, float]]]) -> str:
    """The table, in words."""
    rows, misses = [], []
    for name, found in everything.items():
        said, took = sum(found["predicted"].values()), found["taken"]["all"]
        dial = found["predicted"].get("calibration")
        of_these = [f"{dial:.0f} s", f"{found['taken']['calibrate']:.0f} s"] if dial else ["", ""]
        rows.append([name, f"{said:.0f} s", f"{took:.0f} s", f"{said / took - 1:+.0%}", *of_these])
        misses += [name] if abs(said / took - 1) > BAR else []
    within = "All are within 25 %." if not misses else f"Further off than 25 %: {'; '.join(misses)}."
    return TEXT.format(
        day=date.today().isoformat(),
        torch=torch.__version__,
        machine=platform.machine(),
        threads=torch.get_num_threads(),
        precision=choose_precision("auto", torch.device("cpu"))[1].partition(":")[0],
        table=markdown(["run", "said", "took", "said beside took", *DIAL], rows),
        within=within,
        settings="\n".join(f"- {name}: `{json.dumps(settings)}`" for name, settings in RUNS.items()),
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/hours"), help="folder (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="runs (default: all)")
    parser.add_argument("--write", action="store_true", help="keep the page in docs")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "RUN"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        what, path = args.one[0], Path(args.one[1])
        seconds = {"predicted": predicted, "taken": taken}[what](path, path.parent / "out")
        (path.parent / f"{what}.json").write_text(json.dumps(seconds))
        return 0
    text = page({name: measured(name, args.work.resolve()) for name in args.only})
    print("\n" + text)
    if args.write:
        PAGE.write_text(text, encoding="utf-8")
    return 0


TEXT = """# How long a run takes, said and taken

Measured by `tests/benchmarks/hours.py` on {day} (torch {torch}, {machine}, a CPU, {threads} thread(s), {precision};
n = 1 for each run). `diffusion-nft check` tries a few batches and steps and says how long the whole run will take. Here
the same run was then made. Both leave out loading the base model.

{table}

{within}

The runs' settings beside their presets:

{settings}
"""

if __name__ == "__main__":
    sys.exit(main())
