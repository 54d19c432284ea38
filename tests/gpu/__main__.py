"""What a run takes on this GPU: every phase of every preset, a short run of each, and what guidance costs.

    python -m tests.gpu                                  # from the repository's root; under ten minutes
    python -m tests.gpu --only sdxl flux1_dev --minutes 5
    python -m tests.gpu --write                          # also writes docs/measured/gpu.md
    python -m tests.gpu --tiny --device cpu              # tries the script on tiny models, without a GPU

Base models have the published sizes and random weights, so nothing is downloaded; each is written to --work and loaded
from there as a run loads it, one after another, smallest first. Phases are tried by the code of `diffusion-nft check`.
What no longer fits the minutes, the card or the disk is named and left out. A preset that fails is a line that says so,
and the exit code is then 1. Needs the extras: pip install 'diffusion-nft[train,quantise]'.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import diffusers
import torch

from nft_pipeline.training.demo.report import markdown
from tests.benchmarks.memory import GIB, MODELS
from tests.benchmarks.whole_models import free_disk, weights

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "measured" / "gpu.md"
PHASES = ("encoding prompts", "encoding pictures", "drawing", "decoding", "training", "sweeps", "reading alpha")
STARTING = 30.0  # seconds of a process until it works
PER_GIB = 4.0  # seconds for a GiB of weights to be made, written, read, and gone through, before one preset has told
ENGINE_SECONDS = 100.0  # kept for the engine's benchmark
ENGINE = ["--dtype", "bfloat16", "--model", "sd3.5-medium", "--size", "1024", "--steps", "4", "--rounds", "3"]
ENGINE_TINY = ["--model", "small", "--size", "64", "--steps", "2", "--rounds", "1"]
ENGINE_ONLY = ["--only", "strength 0", "guided", "batched", "single", "policy at strength 1", "adapter swapped"]


@dataclass(frozen=True)
class Limits:
    """What there is: bytes of the card and of the disk, and when the time is over."""

    card: float
    disk: float
    ends: float

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.ends - time.monotonic()


def why_not(sizes: dict[str, int], limits: Limits, per_gib: float) -> str | None:
    """Why a preset is left out; None if it is not.

    Args:
        sizes: bytes of its model's parts.
        per_gib: seconds for each GiB of it.
    """
    whole = sum(sizes.values())
    if max(sizes.values()) > limits.card:
        return f"its largest part has {max(sizes.values()) / GIB:.0f} GiB, the card {limits.card / GIB:.0f}"
    if whole > limits.disk:
        return f"its model has {whole / GIB:.0f} GiB, and {limits.disk / GIB:.0f} are free on the disk of --work"
    needed = STARTING + per_gib * whole / GIB
    if needed > limits.left - ENGINE_SECONDS:
        return f"it takes about {needed:.0f} s, and {max(0.0, limits.left - ENGINE_SECONDS):.0f} are left for it"
    return None


def started(arguments: list[str], seconds: float) -> tuple[int, str]:
    """The exit code of a Python module that is run from the repository's root, 124 if it took longer, and its words."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    try:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=max(1.0, seconds),
        )
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        return 124, said.decode(errors="replace") if isinstance(said, bytes) else said
    return done.returncode, done.stdout


def last_line(said: str) -> str:
    """The last line that says something, which is the error, of a traceback and of a command, whose hint in brackets
    comes after it."""
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("(")]
    return lines[-1][:200] if lines else "it said nothing"


def device_words(device: str) -> str:
    if device.startswith("cuda"):
        facts = torch.cuda.get_device_properties(device)
        return f"{facts.name}, {facts.total_memory / GIB:.0f} GiB"
    return f"CPU, {torch.get_num_threads()} threads"


def rows_of(found: Sequence[dict[str, Any]]) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """Rows of GiB by phase, of seconds by phase, and of the short runs."""
    memory, times, runs = [], [], []
    for one in found:
        peaks = one["peaks"]
        cells = [f"{peaks[phase]:.1f}" if phase in peaks else "-" for phase in PHASES]
        memory.append([one["preset"], *cells, f"{max(peaks.values(), default=0.0):.1f}"])
        times.append([one["preset"], *(f"{one['phases'][phase]:.3g}" for phase in PHASES if phase in one["phases"])])
        seconds = [f"{one['seconds'][name]:.0f}" for name in ("model written", "model loaded", "the run")]
        runs.append([one["preset"], *seconds, f"{one['steps']}", "finite" if one["finite"] else "**not finite**"])
    return memory, times, runs


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=MODELS, metavar="PRESET", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--minutes", type=float, default=9.5, help="to be done in (default: %(default)s)")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu with --tiny (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script; they measure nothing")
    parser.add_argument(
        "--work", type=Path, help="folder for the models, as fast as can be had (default: a temporary one)"
    )
    parser.add_argument("--no-engine", action="store_true", help="leave the engine's benchmark out")
    parser.add_argument("--write", action="store_true", help="write docs/measured/gpu.md")
    args = parser.parse_args(argv)
    if args.tiny and args.write:
        parser.error("--write is for real sizes; tiny models measure nothing worth a page")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(
            "there is no CUDA device here, which this script measures. Run it on a machine with an NVIDIA GPU and a "
            "torch built for CUDA; to try the script itself: python -m tests.gpu --tiny --device cpu"
        )
    if not args.device.startswith("cuda") and not args.tiny:
        parser.error(f"--device is {args.device!r}: models of real size are for a CUDA device; give --tiny with it")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the page, and with --write keep it."""
    args = parse(argv)
    on_card = args.device.startswith("cuda")
    card = torch.cuda.get_device_properties(args.device).total_memory if on_card else float("inf")
    ends, per_gib = time.monotonic() + 60 * args.minutes, PER_GIB
    found: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        work = Path(folder)
        sizes = {preset: {"all": 0} if args.tiny else weights(preset) for preset in args.only or MODELS}
        for preset in sorted(sizes, key=lambda name: sum(sizes[name].values())):
            limits = Limits(card, free_disk(work), ends)
            if reason := why_not(sizes[preset], limits, per_gib):
                left_out[preset] = reason
                print(f"{preset}: left out, {reason}", flush=True)
                continue
            print(f"{preset} ...", flush=True)
            began, out = time.monotonic(), work / f"{preset}.json"
            arguments = ["tests.gpu.family", preset, "--work", str(work / preset), "--device", args.device]
            arguments += ["--out", str(out), *(["--tiny"] if args.tiny else [])]
            code, said = started(arguments, limits.left - (0 if args.no_engine else ENGINE_SECONDS))
            took = time.monotonic() - began
            if code:
                failed[preset] = "its time was over" if code == 124 else last_line(said)
                print(f"{said[-3000:]}\n{preset}: failed, {failed[preset]}", flush=True)
                continue
            found.append(json.loads(out.read_text()))
            print(f"{preset}: {took:.0f} s", flush=True)
            if whole := sum(sizes[preset].values()):
                per_gib = max(PER_GIB / 4, (took - STARTING) / (whole / GIB))
        engine = "left out"
        if not args.no_engine:
            own = [*(ENGINE_TINY if args.tiny else ENGINE), "--device", args.device, *ENGINE_ONLY]
            code, engine = started(["tests.benchmarks.engine", *own], ends - time.monotonic())
            engine = engine[engine.find(" px, ") and max(0, engine.rfind("\n", 0, engine.find(" px, "))) :].strip()
            if code:
                failed["the engine's benchmark"] = "its time was over" if code == 124 else last_line(engine)
    text = page(args, found, left_out, failed, engine)
    print("\n" + text)
    if args.write:
        PAGE.write_text(text, encoding="utf-8")
        print(f"wrote {PAGE}")
    return 1 if failed else 0


def page(
    args: argparse.Namespace,
    found: Sequence[dict[str, Any]],
    left_out: dict[str, str],
    failed: dict[str, str],
    engine: str,
) -> str:
    memory, times, runs = rows_of(found)
    rest = [f"- {name}: left out, {reason}." for name, reason in left_out.items()]
    rest += [f"- {name}: **failed**, {reason}." for name, reason in failed.items()]
    timed = [phase for phase in PHASES if found and phase in found[0]["phases"]]
    return TEXT.format(
        day=date.today().isoformat(),
        device=device_words(args.device),
        torch=torch.__version__,
        diffusers=diffusers.__version__,
        memory=markdown(["preset", *PHASES, "the most"], memory),
        times=markdown(["preset", *timed], times),
        runs=markdown(["preset", "model written", "model loaded", "the run", "steps", "losses"], runs),
        rest="\n".join(rest) or "Nothing was left out, and nothing failed.",
        engine=engine,
        kind="tiny models, which measure nothing" if args.tiny else "models of published sizes",
    )


TEXT = """# On a GPU

Measured by `python -m tests.gpu` on {day}: {device}; torch {torch}, diffusers {diffusers}; n = 1. Random weights,
{kind}, with each preset's own resolution, `pool_batch`, `micro_batch`, number format and ways to save memory. Batches
are small, because memory does not depend on them.

GiB that torch had given out at most, by phase; [memory.md](memory.md) has what was computed. The driver's context and
what the allocator holds in reserve come on top.

{memory}

Seconds, each for one: a prompt, a picture, a denoising step of a picture, a sample of an optimiser step.

{times}

A short run through `train`, from loading to the adapter with its report, in seconds:

{runs}

{rest}

What guidance costs, by `tests/benchmarks/engine.py`:

```
{engine}
```
"""

if __name__ == "__main__":
    sys.exit(main())
