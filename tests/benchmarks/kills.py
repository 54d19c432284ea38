"""Kills a training run with SIGKILL at random moments, lets it go on each time, and compares it with one left alone.

    PYTHONPATH=tests python tests/benchmarks/kills.py --kills 20

Every run is a child of this process, forked after everything is imported, so that it is training within milliseconds.
Prints a table: where each kill found the run, by the steps in its log, and whether the weights at the end are equal
bit for bit. Ends with exit code 0 if they are, offline and online.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg  # noqa: F401 - a run imports it at its end; here it is imported once, for all
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from helpers.forking import fork
from helpers.tiny_run import ONLINE, SMALL, save_tiny
from nft_pipeline.training.demo.report import markdown
from nft_pipeline.training.run.trainer import train
from nft_pipeline.training.settings.config import TrainConfig

KINDS: dict[str, dict[str, Any]] = {
    "offline": {**SMALL, "objective": "policy", "adaptive_noise": True, "checkpoint_every": 3, "samples_every": 5},
    "online": {**ONLINE, "round_steps": 4, "checkpoint_every": 2},
}


def child(config: TrainConfig, out: Path) -> int:
    """A forked process that trains; its id."""

    def task() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        train(config, out, say=lambda line: None, device="cpu")

    return fork(task)


def finished(number: int, out: Path | None = None, steps: int = 0, after: float = 0.0) -> bool:
    """Wait for a child, or kill it so long after the log in `out` has so many steps; whether it ended by itself."""
    ended, status = 0, 0
    while not ended and out is not None and steps_of(out) < steps:
        time.sleep(0.01)
        ended, status = os.waitpid(number, os.WNOHANG)
    if not ended and out is not None:
        time.sleep(after)
        os.kill(number, signal.SIGKILL)
    if not ended:
        _, status = os.waitpid(number, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit("a run failed by itself")
    return not os.WIFSIGNALED(status)


def steps_of(out: Path) -> int:
    """Steps in a run's log; 0 before the first."""
    log = out / "losses.jsonl"
    return len(log.read_text().splitlines()) if log.is_file() else 0


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter" / "pytorch_lora_weights.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills of each kind of run (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is shared by forked processes, and one that is killed may hold it
    moments = random.Random(args.seed)
    rows, differing = [], []
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny(Path(folder) / "model")
        for kind, settings in KINDS.items():
            length = {"steps": 4 * args.kills, "rounds": args.kills if kind == "online" else 0}
            config = TrainConfig.from_mapping({**settings, **length, "base_model": model})
            started = time.monotonic()
            finished(child(config, Path(folder) / f"{kind}-whole"))
            seconds = time.monotonic() - started
            out, found = Path(folder) / f"{kind}-killed", list[int]()
            while len(found) < args.kills:
                # In the middle of loading or sampling, or in that of a step or a checkpoint some steps further.
                further = moments.randint(0, config.total_steps // (args.kills + 1))
                if finished(child(config, out), out, steps_of(out) + further, moments.uniform(0, 0.1)):
                    break
                found.append(steps_of(out))
            else:
                finished(child(config, out))
            whole, killed = weights(Path(folder) / f"{kind}-whole"), weights(out)
            equal = whole.keys() == killed.keys() and all(torch.equal(whole[key], killed[key]) for key in whole)
            at = " ".join(map(str, found))
            verdict = "equal" if equal else "DIFFER"
            rows.append([kind, str(config.total_steps), f"{seconds:.1f}", str(len(found)), at, verdict])
            differing += [] if equal and found else [kind]
    print(markdown(["run", "steps", "seconds undisturbed", "kills", "steps done at each kill", "weights"], rows))
    if differing:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
