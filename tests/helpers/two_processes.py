"""Trains with one process and with two over gloo, and says how far the weights are apart, and whether a run on two that
broke off and went on ends in the same weights bit for bit.

    PYTHONPATH=tests python tests/helpers/two_processes.py

Processes are forked after everything is imported, with the variables that accelerate launch and torchrun set.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from helpers.tiny_run import ONLINE, SMALL, save_tiny
from nft_pipeline.training.config import TrainConfig
from nft_pipeline.training.learner import Learner
from nft_pipeline.training.trainer import train

# Batches of odd sizes, so that the shares of two processes differ; small ones at a time in the second. The third
# samples eight pictures in three batches, so that one process has two turns and the other one.
KINDS: dict[str, dict[str, Any]] = {
    "positive": {"batch": 9, "head_batch": 7},
    "policy": {"objective": "policy", "batch": 9, "micro_batch": 2},
    "online": {**ONLINE, "batch": 9, "pool_batch": 3},
}
BROKEN_OFF = 3  # steps, one after a checkpoint


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _BreakOff(Exception):
    pass


def _break_off() -> None:
    """From now on a run ends at step `BROKEN_OFF`, in every process and without a word."""
    step = Learner.step

    def or_not(self: Learner, pool: Any) -> dict[str, float]:
        if self.step_number == BROKEN_OFF:
            raise _BreakOff
        return step(self, pool)

    Learner.step = or_not  # type: ignore[method-assign]


def launch(config: TrainConfig, out: Path, count: int, broken_off: bool = False) -> dict[str, torch.Tensor]:
    """Train with `count` processes; the weights they wrote, none if they broke off."""
    shared = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "GLOO_SOCKET_IFNAME": "lo"}
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.environ |= {name: str(value) for name, value in {**shared, "RANK": rank}.items()}
            try:
                if broken_off:
                    _break_off()
                train(config, out, say=lambda line: None, device="cpu")
                os._exit(0)
            except _BreakOff:
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        children.append(child)
    if any(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children):
        raise SystemExit(f"{count} processes: a run failed")
    return {} if broken_off else load_file(out / "adapter" / "pytorch_lora_weights.safetensors")


def main() -> None:
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny(Path(folder) / "model")
        for kind, more in KINDS.items():
            config = TrainConfig.from_mapping({**SMALL, **more, "base_model": model})
            one, two = (launch(config, Path(folder) / f"{kind}-{count}", count) for count in (1, 2))
            again = Path(folder) / f"{kind}-again"
            launch(config, again, 2, broken_off=True)
            assert not (again / "adapter").exists()
            resumed = launch(config, again, 2)
            assert one.keys() == two.keys() == resumed.keys()
            found[kind] = {
                "apart": max(float((one[key] - two[key]).abs().max()) for key in one),
                "moved": max(float(one[key].abs().max()) for key in one if "lora_B" in key),
                "resumed": all(torch.equal(two[key], resumed[key]) for key in two),
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
