"""Kill a process that overwrites one adapter again and again, many times; run as a script by test_killed_writer.

    python kill_writer.py FOLDER KILLS|steps

Forked, not started anew: importing torch for every kill would take most of the time. Prints one JSON line:
how many kills found the old or a new adapter, and how many hit a write in the middle.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from helpers.adapters import assert_same, config_values, random_head
from nft_pipeline.adapter import Adapter, AdapterConfig, read_adapter, write_adapter


def adapter(number: int) -> Adapter:
    """Two adapters that differ in every file, name and number of files."""
    generator = torch.Generator().manual_seed(number)
    lora = {}
    for layer in range(4 + number):
        lora[f"transformer.blocks.{layer}.to_q.lora_A.weight"] = torch.randn(4, 64, generator=generator)
        lora[f"transformer.blocks.{layer}.to_q.lora_B.weight"] = torch.randn(64, 4, generator=generator)
    kind = ("positive", "policy")[number]
    config = AdapterConfig.from_dict(config_values(kind=kind, name=f"number-{number}"))
    return Adapter(config, lora, random_head(seed=number) if kind == "positive" else None)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Bench:
    """Two adapters, the folder they take turns in, and a look at what a killed writer left there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.adapters = [adapter(0), adapter(1)]
        self.extras: list[dict[str, bytes]] = [
            {"README.md": b"zero"},
            {"README.md": b"one", "samples/1.png": bytes(20_000)},
        ]
        self.whole = []
        self.seen: Counter[str] = Counter()
        self.left: set[str] = set()  # working copies of killed writers
        for number in (0, 1):
            self.write(number)
            self.whole.append(files_of(folder))
        self.number = 1  # the adapter that stands there

    def write(self, number: int) -> None:
        """Overwrite the folder."""
        write_adapter(self.folder, self.adapters[number], self.extras[number])

    def look(self) -> bool:
        """Check that one of the two adapters is there, whole. Is it another than at the last look?"""
        names = set(os.listdir(self.folder.parent))
        self.seen["hit a write"] += len(names - self.left) > 1
        self.seen["found no folder"] += self.folder.name not in names
        found = read_adapter(self.folder)
        before, self.number = self.number, 0 if found.config == self.adapters[0].config else 1
        assert_same(found, self.adapters[self.number])
        if files_of(self.folder) != self.whole[self.number]:
            raise AssertionError(f"files {sorted(files_of(self.folder))} are not those of adapter {self.number}")
        self.seen["found the old one" if self.number == before else "found a new one"] += 1
        self.left = set(os.listdir(self.folder.parent)) - {self.folder.name}
        return self.number != before


def kill_at_random(bench: Bench, kills: int) -> None:
    """Kill a child that writes without end, at a random moment."""
    rng = random.Random(0)
    window = 0.02  # seconds in which the kill falls
    for _ in range(kills):
        started, starts = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(starts, b"!")
                for turn in itertools.count(1 - bench.number):
                    bench.write(turn % 2)
            finally:
                os._exit(1)  # reached only if a write failed
        os.read(started, 1)
        time.sleep(rng.uniform(0, window))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            raise AssertionError("the writer failed before it was killed")
        os.close(started)
        os.close(starts)
        # However busy the machine: about as many kills before the first write is done as after it.
        window = min(window * (0.8 if bench.look() else 1.3), 1.0)


def kill_at_every_step(bench: Bench) -> None:
    """Kill a child just before the first, the second, ... thing it does to the disk, until a write gets through."""
    for step in itertools.count(1):
        child = os.fork()
        if child == 0:
            try:
                left = step

                def hook(event: str, _: tuple[object, ...]) -> None:
                    nonlocal left
                    left -= event == "open" or event.startswith(("os.", "shutil.", "fcntl."))
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

                sys.addaudithook(hook)
                bench.write(1 - bench.number)
                left = -1
                os._exit(0)
            finally:
                os._exit(1)  # reached only if a write failed
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            if os.waitstatus_to_exitcode(status):
                raise AssertionError("the writer failed before it was killed")
            return
        bench.seen["steps"] += 1
        bench.look()


def main(folder: Path, how: str) -> None:
    """Kill, look, repeat; raises if what is left is neither of the two adapters, whole."""
    torch.set_num_threads(1)
    bench = Bench(folder)
    if how == "steps":
        kill_at_every_step(bench)
    else:
        kill_at_random(bench, int(how))
    bench.write(1)
    assert_same(read_adapter(folder), bench.adapters[1])
    print(json.dumps({**bench.seen, "left over": os.listdir(folder.parent)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
