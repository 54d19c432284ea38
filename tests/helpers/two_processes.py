"""Trains with one process and with two over gloo. Says how far the weights are apart, whether a run on two that broke
off and went on ends in the same weights bit for bit, and how much of the base model the first of the two had.

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
from torch.distributed.tensor import DTensor

from helpers.tiny_run import ONLINE, SHOWN, SMALL, save_tiny
from nft_pipeline.training.bases.base import TrainBase
from nft_pipeline.training.learn.learner import Learner
from nft_pipeline.training.run.sharding import Splitter
from nft_pipeline.training.run.trainer import train
from nft_pipeline.training.settings.config import TrainConfig

# What a kind's name begins with where the base model is split, and what the launcher then sets.
SPLIT: dict[Splitter, dict[str, object]] = {
    "FSDP": {"ACCELERATE_USE_FSDP": "true"},
    "DeepSpeed": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": 3},
}
SPLIT_ONLINE = {
    **ONLINE,
    **SHOWN,
    "batch": 10,
    "micro_batch": 2,
    "pool_batch": 3,
    "gradient_checkpointing": True,
}
# Batches of odd sizes, so that the shares of two processes differ; some at a time in the second, whose noise levels
# adapt after two steps. The third samples eight pictures in three batches, so that one process has two turns and the
# other one. Where the base model is split, shares are even.
KINDS: dict[str, dict[str, Any]] = {
    "positive": {"batch": 9, "head_batch": 7},
    "policy": {"objective": "policy", "batch": 49, "micro_batch": 10, "adaptive_noise": True},
    "online": {**ONLINE, "batch": 9, "pool_batch": 3},
    "FSDP, positive": {**SHOWN, "batch": 10, "head_batch": 6},
    "FSDP, online": SPLIT_ONLINE,
    "DeepSpeed, online": SPLIT_ONLINE,
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


def splitter_of(kind: str) -> Splitter | None:
    """What splits the base model of runs of this kind."""
    return next((how for how in SPLIT if kind.startswith(how)), None)


def local_size(parameter: torch.nn.Parameter) -> int:
    """How many of a parameter's numbers this process has."""
    if hasattr(parameter, "ds_tensor"):  # DeepSpeed's share; beside it stands what was gathered and not let go
        return int(parameter.ds_tensor.numel()) + parameter.numel()
    return (parameter.to_local() if isinstance(parameter, DTensor) else parameter).numel()


def _count_weights(file: Path) -> None:
    """From now on a learner writes down how many of the base model's numbers its process has."""
    start = Learner.__init__

    def and_count(self: Learner, base: TrainBase, *others: Any) -> None:
        file.write_text(str(sum(map(local_size, base.denoiser.parameters()))))
        start(self, base, *others)

    Learner.__init__ = and_count  # type: ignore[method-assign]


def launch(
    config: TrainConfig, out: Path, count: int, broken_off: bool = False, how: Splitter | None = None
) -> dict[str, torch.Tensor]:
    """Train with `count` processes; the weights they wrote, none if they broke off."""
    out.mkdir(exist_ok=True)
    shared: dict[str, object] = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    shared |= {"GLOO_SOCKET_IFNAME": "lo", **(SPLIT[how] if how else {})}
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.environ |= {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
            try:
                _count_weights(out / f"weights-{rank}.txt")
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


def _shown(out: Path) -> list[str]:
    """Names of the pictures a run drew, and what its sweeps say to three digits."""
    sweeps = (out / "sweeps.jsonl").read_text().splitlines() if (out / "sweeps.jsonl").is_file() else []
    values = [f"{value:.3f}" for line in sweeps for value in json.loads(line).values() if isinstance(value, float)]
    return [*sorted(path.name for path in (out / "samples").glob("*")), *values]


def main() -> None:
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny(Path(folder) / "model")
        for kind, more in KINDS.items():
            config = TrainConfig.from_mapping({**SMALL, **more, "base_model": model})
            how, folders = splitter_of(kind), [Path(folder) / f"{kind}-{count}" for count in (1, 2)]
            one, two = launch(config, folders[0], 1), launch(config, folders[1], 2, how=how)
            again = Path(folder) / f"{kind}-again"
            launch(config, again, 2, broken_off=True, how=how)
            assert not (again / "adapter").exists()
            resumed = launch(config, again, 2, how=how)
            assert one.keys() == two.keys() == resumed.keys()
            found[kind] = {
                "apart": max(float((one[key] - two[key]).abs().max()) for key in one),
                "moved": max(float(one[key].abs().max()) for key in one if "lora_B" in key),
                "resumed": all(torch.equal(two[key], resumed[key]) for key in two),
                "share": int((folders[1] / "weights-0.txt").read_text())
                / int((folders[0] / "weights-0.txt").read_text()),
                "shown": _shown(folders[0]) == _shown(folders[1]),
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
