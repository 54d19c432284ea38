"""Kills a training run at random moments, lets it go on each time, and compares it with one that was left alone.

    PYTHONPATH=tests python tests/helpers/kill_trainer.py --kills 20

Every run is a child of this process, forked after everything is imported, so that it is training within milliseconds.
Ends with exit code 0 if the weights are equal bit for bit, offline and online.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from helpers.tiny_run import ONLINE, SMALL, save_tiny
from nft_pipeline.training.config import TrainConfig
from nft_pipeline.training.trainer import train

KINDS: dict[str, dict[str, Any]] = {
    "offline": {**SMALL, "objective": "policy", "checkpoint_every": 3, "samples_every": 5},
    "online": {**ONLINE, "round_steps": 4, "checkpoint_every": 2},
}


def child(config: TrainConfig, out: Path) -> int:
    """A forked process that trains; its id."""
    number = os.fork()
    if number == 0:
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            train(config, out, say=lambda line: None, device="cpu")
            os._exit(0)
        finally:
            os._exit(1)
    return number


def finished(number: int, after: float | None = None) -> bool:
    """Wait for a child, or kill it after so many seconds; whether it ended by itself, as it should."""
    if after is not None:
        time.sleep(after)
        os.kill(number, signal.SIGKILL)
    _, status = os.waitpid(number, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit("a run failed by itself")
    return not os.WIFSIGNALED(status)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "adapter" / "pytorch_lora_weights.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills of each kind of run (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny(Path(folder) / "model")
        for kind, settings in KINDS.items():
            length = {"steps": 4 * args.kills, "rounds": args.kills if kind == "online" else 0}
            config = TrainConfig.from_mapping({**settings, **length, "base_model": model})
            started = time.monotonic()
            finished(child(config, Path(folder) / f"{kind}-whole"))
            seconds = time.monotonic() - started
            out, kills = Path(folder) / f"{kind}-killed", 0
            for _ in range(args.kills):
                # Some moments are in the middle of loading or sampling, others some steps further.
                if finished(child(config, out), moments.uniform(0, 2 * seconds / (args.kills + 2))):
                    break
                kills += 1
            else:
                finished(child(config, out))
            whole, killed = weights(Path(folder) / f"{kind}-whole"), weights(out)
            equal = whole.keys() == killed.keys() and all(torch.equal(whole[key], killed[key]) for key in whole)
            print(f"{kind}: {kills} kills of a run of {seconds:.1f} s, weights {'equal' if equal else 'DIFFER'}")
            if not equal or kills == 0:
                raise SystemExit(1)


if __name__ == "__main__":
    main()
