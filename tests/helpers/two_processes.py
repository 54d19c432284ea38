"""Trains with one process and with two over gloo. Says how far the weights are apart, whether a run on two that broke
off and went on ends in the same weights bit for bit, and how much of the base model the first of the two had.

    PYTHONPATH=tests python tests/helpers/two_processes.py whole|FSDP|DeepSpeed

Processes are forked after everything is imported. Those of one launch train all kinds that are split alike, one after
the other; runs that broke off go on in processes that know nothing of them.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from helpers.forking import together
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
# What runs import on their way, which each forked process would do anew.
LATE = ("jinja2", "matplotlib.backends.backend_agg", "tensorboardX")
LATE_IF_SPLIT: dict[Splitter, tuple[str, ...]] = {"FSDP": ("torch.distributed.fsdp",), "DeepSpeed": ("deepspeed",)}


class _BreakOff(Exception):
    pass


def kinds_of(how: Splitter | None) -> dict[str, dict[str, Any]]:
    """The kinds whose base model is split in that way, with their settings; None for those where it stays whole."""
    return {kind: more for kind, more in KINDS.items() if how == next((each for each in SPLIT if each in kind), None)}


def local_size(parameter: torch.nn.Parameter) -> int:
    """How many of a parameter's numbers this process has."""
    if hasattr(parameter, "ds_tensor"):  # DeepSpeed's share; beside it stands what was gathered and not let go
        return int(parameter.ds_tensor.numel()) + parameter.numel()
    return (parameter.to_local() if isinstance(parameter, DTensor) else parameter).numel()


def run(config: TrainConfig, out: Path, rank: int, break_off: bool = False) -> None:
    """Train in `out`, and write down there how many of the base model's numbers this process has.

    A run that is to break off does so at step `BROKEN_OFF`, in every process and without a word.
    """
    start, step = Learner.__init__, Learner.step

    def and_count(self: Learner, base: TrainBase, *others: Any) -> None:
        (out / f"weights-{rank}.txt").write_text(str(sum(map(local_size, base.denoiser.parameters()))))
        start(self, base, *others)

    def or_not(self: Learner, pool: Any) -> dict[str, float]:
        if break_off and self.step_number == BROKEN_OFF:
            raise _BreakOff
        return step(self, pool)

    out.mkdir(exist_ok=True)
    with (
        patch.object(Learner, "__init__", and_count),
        patch.object(Learner, "step", or_not),
        suppress(_BreakOff) if break_off else nullcontext(),
    ):
        train(config, out, say=lambda line: None, device="cpu")


def _shown(out: Path) -> list[str]:
    """Names of the pictures a run drew, and what its sweeps say to three digits."""
    sweeps = (out / "sweeps.jsonl").read_text().splitlines() if (out / "sweeps.jsonl").is_file() else []
    values = [f"{value:.3f}" for line in sweeps for value in json.loads(line).values() if isinstance(value, float)]
    return [*sorted(path.name for path in (out / "samples").glob("*")), *values]


def train_all(configs: Mapping[str, TrainConfig], folder: Path, how: Splitter | None) -> None:
    """Every kind with one process in KIND-one, with two in KIND-two, and with two that broke off in KIND-again."""

    def alone(rank: int) -> None:
        for kind, config in configs.items():
            run(config, folder / f"{kind}-one", rank)

    def both(rank: int) -> None:
        for kind, config in configs.items():
            run(config, folder / f"{kind}-two", rank)
            run(config, folder / f"{kind}-again", rank, break_off=True)

    def go_on(rank: int) -> None:
        for kind, config in configs.items():
            run(config, folder / f"{kind}-again", rank)

    variables = SPLIT[how] if how else None
    together(1, alone)
    together(2, both, variables)
    assert not [kind for kind in configs if (folder / f"{kind}-again" / "adapter").exists()]
    together(2, go_on, variables)


def main(how: Splitter | None) -> None:
    torch.set_num_threads(1)
    os.environ["DS_ACCELERATOR"] = "cpu"
    for name in LATE if how is None else (*LATE, *LATE_IF_SPLIT[how]):
        importlib.import_module(name)
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = {"base_model": save_tiny(folder / "model")}
        configs = {kind: TrainConfig.from_mapping({**SMALL, **more, **model}) for kind, more in kinds_of(how).items()}
        train_all(configs, folder, how)
        for kind in configs:
            folders = [folder / f"{kind}-{name}" for name in ("one", "two", "again")]
            one, two, resumed = (load_file(out / "adapter" / "pytorch_lora_weights.safetensors") for out in folders)
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
    main(next((how for how in SPLIT if how == sys.argv[1]), None))
