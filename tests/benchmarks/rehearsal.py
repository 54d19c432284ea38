"""A whole run on models of real size with random weights, through the commands that people give: time and memory.

    PYTHONPATH=tests python -m tests.benchmarks.rehearsal --write
    PYTHONPATH=tests python -m tests.benchmarks.rehearsal --only sd15 --size 256 --work /tmp/rehearsal

For each preset: its base model is written with random weights (tests/benchmarks/whole_models.py), and `check`, `train`
(a pool of four pictures, two optimiser steps, a sweep, a grid, the head's calibration), `verify`, `sample` and
`push --dry-run` are run one after another, each in a process of its own. Pictures are noise; what is looked at is that
every command ends well, how long it takes, and how much memory its process has at most. --tiny runs the same on tiny
models. --write keeps the page among docs/measured.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import diffusers
import torch
import yaml

from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.run.hours import duration
from tests.benchmarks.memory import MODELS
from tests.benchmarks.whole_models import save, save_tiny

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "measured" / "rehearsal.md"
PROMPTS = ["a red cat and a dog", "two cows and a cat", "a dog", "a cat and a red cow"]
# So small that a CPU gets through them; whatever a preset says beside these stays.
SMALL: dict[str, Any] = {
    "reward": "colourfulness",
    "optimality": "rank",
    "precision": "bf16",
    "pool_size": 4,
    "held_out_size": 2,
    "pool_steps": 2,
    "pool_batch": 2,
    "steps": 2,
    "batch": 2,
    "head_batch": 2,
    "micro_batch": 1,
    "samples_every": 2,
    "sweep_size": 4,
    "sweep_strengths": [0.0, 1.0],
}
KEPT = "ran.json"
CALIBRATED = 240  # pictures, the fewest that `calibrate` takes


@dataclass(frozen=True)
class Ran:
    """A command that has ended: seconds of the clock and of the CPU, GiB that its process had at most, what it said."""

    command: str
    code: int
    wall: float
    cpu: float
    gib: float
    said: str


def ran(arguments: list[str], log: Path) -> Ran:
    """Run `diffusion-nft` with these arguments in a process of its own; what it says goes to `log` too."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    with log.open("wb") as out:
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "nft_pipeline", *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **offline},
            cwd=log.parent,
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - started
    said = log.read_text("utf-8", errors="replace")
    return Ran(arguments[0], process.returncode, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20, said)


def rehearse(preset: str, work: Path, size: int, tiny: bool, calibrates: bool) -> list[Ran]:
    """Every command on the preset's model, in a folder of its own; the first that fails is the last.

    Args:
        work: the model stays there, for another time.
        size: edge of the pictures in pixels.
        tiny: take the tests' model, at its own size.
        calibrates: whether the run calibrates the dial, with `CALIBRATED` pictures.
    """
    folder = work / ("tiny" if tiny else "full") / preset
    model = folder / "model"
    if not (model / "model_index.json").is_file():
        (save_tiny if tiny else save)(preset, model)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    settings: dict[str, Any] = {"preset": preset, "name": f"rehearsal-{preset}", **SMALL, "base_model": "model"}
    settings |= {"base_id": f"someone/{preset}", "prompts": "prompts.txt", "held_out_prompts": "prompts.txt"}
    settings |= {"reward_description": "random weights draw nothing", "licence": "apache-2.0"}
    settings |= {"resolution": None if tiny else size}
    if calibrates:
        settings |= {"calibration_pictures": CALIBRATED}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    run = ["run.yaml", "--device", "cpu", "--out", "out"]
    adapter = "out/adapter"
    commands = [["check", *run], ["train", *run], ["verify", adapter, "--no-card", "--base", "model"]]
    drawing = ["--model", "model", "--steps", "2", "--seeds", "0", "--strengths", "0", "1", "--device", "cpu"]
    if not tiny:
        drawing += ["--width", str(size), "--height", str(size)]
    commands += [["sample", PROMPTS[0], "--adapter", adapter, *drawing, "--dtype", "bfloat16"]]
    commands += [["push", adapter, f"someone/rehearsal-{preset}", "--dry-run", "--licence", "apache-2.0"]]
    found: list[Ran] = []
    for place, command in enumerate(commands):
        print(f"{preset}: {command[0]} ...", flush=True)
        found.append(ran(command, folder / f"{place}-{command[0]}.txt"))
        print(f"{preset}: {command[0]} {found[-1].code}, {found[-1].wall:.0f} s, {found[-1].gib:.1f} GiB", flush=True)
        if found[-1].code:
            print(found[-1].said[-2000:])
            break
    (folder / KEPT).write_text(json.dumps({"size": size, "ran": [asdict(one) for one in found]}, indent=1))
    return found


def kept(preset: str, work: Path, size: int, tiny: bool) -> list[Ran] | None:
    """What an earlier call measured at this size, None if nothing or if it failed."""
    path = work / ("tiny" if tiny else "full") / preset / KEPT
    if not path.is_file():
        return None
    said = json.loads(path.read_text())
    found = [Ran(**one) for one in said["ran"]]
    return found if said["size"] == size and not any(one.code for one in found) else None


def memory_line(check: Ran) -> str:
    """What `check` said of memory, phase by phase."""
    found = re.search(r"memory: GiB of this process at most: (.*)", check.said)
    return found[1] if found else "not said"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=["sd15", "sdxl"], help="presets (sd15 sdxl)")
    parser.add_argument("--size", type=int, default=512, help="edge of the pictures in pixels (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("/tmp/rehearsal"), help="folder (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try this script")
    parser.add_argument("--calibrate", action="store_true", help=f"the dial too, with {CALIBRATED} pictures")
    parser.add_argument("--kept", action="store_true", help="take what is in --work of an earlier call, run the rest")
    parser.add_argument("--write", action="store_true", help="keep the page in docs")
    args = parser.parse_args(argv)
    everything = {}
    for preset in args.only:
        where = (preset, args.work.resolve(), args.size, args.tiny)
        everything[preset] = (kept(*where) if args.kept else None) or rehearse(*where, args.calibrate)
    failed = [f"{preset}: {one.command}" for preset, found in everything.items() for one in found if one.code]
    rows = [
        [preset, f"`{one.command}`", duration(one.wall), duration(one.cpu), f"{one.gib:.1f}"]
        for preset, found in everything.items()
        for one in found
    ]
    text = TEXT.format(
        day=date.today().isoformat(),
        torch=torch.__version__,
        diffusers=diffusers.__version__,
        threads=torch.get_num_threads(),
        size=args.size,
        table=markdown(["preset", "command", "time", "CPU time", "GiB"], rows),
        phases="\n".join(f"- {preset}: {memory_line(found[0])}." for preset, found in everything.items()),
    )
    print("\n" + text)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    elif args.write:
        PAGE.write_text(text, encoding="utf-8")
    return 1 if failed else 0


TEXT = """# A rehearsal at full size

Measured by `tests/benchmarks/rehearsal.py` on {day} (torch {torch}, diffusers {diffusers}; a CPU of two cores that
other programs used too, {threads} thread, n = 1). Base models of the published sizes with random weights in bf16, each
whole: denoiser, VAE, text encoders. Pictures of {size} px. A run of `train` is a pool of four pictures and two held
out, two denoising steps each, two optimiser steps with samples one at a time, a sample grid, a sweep at two strengths,
the head's calibration, and the adapter with its report. GiB is the most that the command's process had, the weights'
files included that it had read; the time is the clock's, which other programs lengthen.

{table}

By phase, GiB of the process that `check` measured:

{phases}
"""

if __name__ == "__main__":
    sys.exit(main())
