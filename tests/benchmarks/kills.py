"""Kills training runs at random moments, lets them go on each time, and compares all they leave with runs left alone.

    PYTHONPATH=tests python tests/benchmarks/kills.py --kills 200 --work runs/kills

The kinds of run take turns: offline, online, and online with an anchor. Each is `diffusion-nft train FILE --out FOLDER`
and is started again after every kill until it says that it is done. Every second kill is SIGKILL; of the others, which
are SIGINT, every second one is followed by another SIGINT. After a quarter of the kills a file that the run needs is
damaged, too: the newest checkpoint, or a pool. Every twentieth start, by chance, is a new process of the executable.
The others are forked from a process that has imported what it imports, which saves ten seconds each.

At the end everything that the run leaves (weights, config, pictures, the tables of losses, rounds and sweeps, reports)
has to be that of a run that nobody killed, bit for bit. Only times, and the memory that was in use, may differ.
Finished runs are noted in --work, so that this script, killed itself, goes on.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from helpers.tiny_run import ONLINE, SHOWN, SMALL, prompts, save_tiny
from nft_pipeline.cli import main as executable
from nft_pipeline.training.demo.report import markdown

BUILT_IN = {"reward": "sharpness", "reward_description": "sharp", "watch_reward": "colourfulness"}
PICTURES = {**SHOWN, **BUILT_IN, "samples_every": 5, "sample_prompts": ["a cat"]}
ROUNDS = {**ONLINE, **PICTURES, "rounds": 4, "round_steps": 3, "sweep_every": 1}
KINDS: dict[str, dict[str, Any]] = {
    "offline": {**SMALL, **PICTURES, "steps": 12},
    "online": {name: value for name, value in ROUNDS.items() if name != "eta0"} | {"keep_best": True},
    "anchored": {**ROUNDS, "step_law": "odds"},
}
STEPS = 12  # of each
_SPEED = re.compile(rb"<h2>Speed and memory</h2>\s*<img [^>]*>")
LAST = 5  # kills after the last step, where a run that makes so few pictures spends most of its time
HEAD = [
    *("run", "runs", "kills", "before the first step", "while it trained", "after the last step", "files damaged"),
    *("named", "runs whose weights, pictures, tables and reports are equal"),
]


@dataclass
class Killed:
    """One run that was killed over and over until it was done.

    Args:
        kind: a key of `KINDS`.
        kills: by where they found the run: "before", "training", "after".
        damaged: the files that were damaged in between, and of these, in `named`, those that the run spoke of.
        differing: the files that are not those of a run left alone.
    """

    kind: str
    kills: dict[str, int] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    named: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)


class Run:
    """One run in one folder: its settings file, its log, and how to start it."""

    def __init__(self, kind: str, work: Path, name: str) -> None:
        self.file, self.out, self.log = work / f"{kind}.yaml", work / name, work / f"{name}.log"
        texts = work / "prompts.txt"
        texts.write_text("\n".join(prompts()))
        settings = {**KINDS[kind], "base_model": str(work / "model"), "prompts": str(texts)}
        self.file.write_text(yaml.safe_dump(settings))

    def start(self, anew: bool = False) -> int:
        """The id of a process that trains, or goes on."""
        arguments = ["train", str(self.file), "--out", str(self.out), "--device", "cpu"]
        with self.log.open("ab") as log:
            if anew:
                command = [sys.executable, "-u", "-m", "nft_pipeline", *arguments]
                return subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=_listens).pid
            number = os.fork()
            if number == 0:
                code = 1
                try:
                    _listens()
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
                    code = executable(arguments)
                finally:
                    os._exit(code)
            return number

    def done(self) -> int:
        """Steps in the log of losses; 0 before the first."""
        log = self.out / "losses.jsonl"
        return len(log.read_text().splitlines()) if log.is_file() else 0

    def has_done(self, steps: int) -> bool:
        """Whether so many steps are in the log of losses."""
        return self.done() >= steps

    def said(self, start: int = 0) -> str:
        """What the run printed, from a byte of its log on."""
        return self.log.read_bytes()[start:].decode(errors="replace")

    def phase(self) -> str:
        """Where the run is: before its first step, training, or after its last step."""
        return "before" if not self.done() else "training" if self.done() < STEPS else "after"


def _listens() -> None:
    """A job in the background ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def ended(number: int, seconds: float | None = None, enough: Callable[[], bool] = lambda: False) -> int | None:
    """How a process ended, as subprocess says it; None if it has not after so many seconds, or when it is `enough`."""
    until = None if seconds is None else time.monotonic() + seconds
    while until is None or (time.monotonic() < until and not enough()):
        gone, status = os.waitpid(number, 0 if until is None else os.WNOHANG)
        if gone:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def kill(number: int, chance: random.Random) -> int:
    """End a process by one of the signals; returns how it ended."""
    if chance.random() < 0.5:
        os.kill(number, signal.SIGKILL)
    else:
        os.kill(number, signal.SIGINT)
        if chance.random() < 0.5 and ended_early(number, chance.uniform(0, 0.3)) is None:
            os.kill(number, signal.SIGINT)
    code = ended(number)
    assert code is not None
    return code


def ended_early(number: int, seconds: float) -> int | None:
    """As `ended`, but leaves the process to be waited for."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitid(os.P_PID, number, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return 0
        time.sleep(0.005)
    return None


def damage(run: Run, chance: random.Random, harmed: Collection[str]) -> str | None:
    """Harm one of the files that the run would go on from and that is not `harmed` yet; its name, None without one."""
    names = ("checkpoint.pt", "pool.safetensors", "held_out.safetensors", "round.safetensors")
    there = [run.out / name for name in names if name not in harmed and (run.out / name).is_file()]
    if not there:
        return None
    path = chance.choice(there)
    data = bytearray(path.read_bytes())
    place, act = chance.randrange(len(data)), chance.randrange(3)
    if act == 0:
        del data[place:]
    elif act == 1:
        data[place : place + 512] = bytes(b ^ 0xFF for b in data[place : place + 512])
    else:
        data[place] ^= 1 << chance.randrange(8)
    with path.open("r+b") as file:  # under all of its names
        file.write(data)
        file.truncate(len(data))
    return path.name


def torture(run: Run, kind: str, whole: Path, seconds: float, chance: random.Random, most: int) -> Killed:
    """Kill a run at random moments, at most `most` times, until it is done; compare it with the `whole` one.

    Args:
        seconds: how long a run takes that is left alone.
    """
    result, phases = Killed(kind), Counter[str]()
    waiting: dict[str, int] = {}  # damaged files that the run has not spoken of yet, and how long its log was then
    while True:
        number = run.start(anew=chance.random() < 0.05)
        code = None
        if phases.total() >= most or phases["after"] >= LAST:
            code = ended(number)
        elif chance.random() < 0.5 or run.has_done(STEPS - 1):
            code = ended(number, chance.uniform(0, 0.3 * seconds))
        else:  # in the middle of a step, or of what follows it
            code = ended(number, seconds, partial(run.has_done, run.done() + chance.randint(1, 2)))
            if code is None:
                code = ended(number, chance.uniform(0, 0.2))
        struck = code is None
        if code is None:
            code = kill(number, chance)
        for name, length in list(waiting.items()):
            if f"{run.out / name} cannot be read as a" in run.said(length):
                result.named.append(name)
                del waiting[name]
        if code == 0:
            break
        if not struck:
            if "There is no sound one beside it. Delete it to start again" not in run.said()[-3000:]:
                raise SystemExit(f"a run failed by itself with {code}: {run.log}")
            (run.out / "checkpoint.pt").unlink()  # as it says
            continue
        phases[run.phase()] += 1
        if chance.random() < 0.25 and (name := damage(run, chance, waiting)):
            result.damaged.append(name)
            waiting[name] = run.log.stat().st_size
    result.kills, result.differing = dict(phases), differing(whole, run.out)
    return result


def differing(one: Path, other: Path) -> list[str]:
    """The files of two finished runs that are not equal, or that only one of them has."""
    a, b = contents(one), contents(other)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def contents(out: Path) -> dict[str, bytes]:
    """All files of a run that somebody looks at, without the times and the memory in its records."""
    files = {str(path.relative_to(out)): path for path in sorted(out.rglob("*")) if path.is_file()}
    data = {name: path.read_bytes() for name, path in files.items() if not name.startswith(("tensorboard", "."))}
    report = json.loads(data["adapter/run_report.json"])
    hours = report["trained"].pop("hours")
    data["adapter/run_report.json"] = json.dumps(report).encode()
    data["report.html"] = _SPEED.sub(b"", data["report.html"]).replace(f"{hours:g}".encode(), b"")
    del data["speed.jsonl"]
    state = torch.load(io.BytesIO(data["last.pt"]), weights_only=True)
    del state["seconds"]
    data["last.pt"] = repr(_plain(state)).encode()
    return data


def _plain(value: Any) -> Any:
    """A state with its tensors as bytes: files of equal states may differ in how often they hold an equal text."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return value


def row(kind: str, runs: Sequence[Killed]) -> list[str]:
    """A line of the table."""
    kills = sum((Counter(run.kills) for run in runs), Counter[str]())
    equal = sum(not run.differing for run in runs)
    return [
        *(kind, str(len(runs)), str(kills.total()), *(str(kills[phase]) for phase in ("before", "training", "after"))),
        *(
            str(sum(len(run.damaged) for run in runs)),
            str(sum(len(run.named) for run in runs)),
            f"{equal} of {len(runs)}",
        ),
    ]


def table(runs: Sequence[Killed]) -> str:
    """What came of all runs, in Markdown."""
    rows = [row(kind, [run for run in runs if run.kind == kind]) for kind in KINDS]
    return markdown(HEAD, [*rows, row("all", runs)])


def kill_runs(work: Path, kills: int, seed: int, most: int = 25) -> list[Killed]:
    """Kill runs of all kinds in turn, `kills` times in all or a little more. What is finished is kept in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "model").is_dir():
        save_tiny(work / "model")
    record = work / "kills.jsonl"
    results = [Killed(**json.loads(line)) for line in record.read_text().splitlines()] if record.is_file() else []
    seconds = {}
    while sum(sum(result.kills.values()) for result in results) < kills or len(results) < len(KINDS):
        number, kind = len(results), list(KINDS)[len(results) % len(KINDS)]
        whole = Run(kind, work, f"{kind}-whole")
        if kind not in seconds:
            shutil.rmtree(whole.out, ignore_errors=True)
            started = time.monotonic()
            if ended(whole.start()) != 0:
                raise SystemExit(f"a run that was left alone failed: {whole.log}")
            seconds[kind] = time.monotonic() - started
        run = Run(kind, work, f"{kind}-{number}")
        shutil.rmtree(run.out, ignore_errors=True)
        run.log.unlink(missing_ok=True)
        result = torture(run, kind, whole.out, seconds[kind], random.Random(f"{seed} {number}"), most)
        with record.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        results.append(result)
        print(
            f"run {number}, {kind}: {result.kills}, damaged {result.damaged}, differing {result.differing}", flush=True
        )
        if not result.differing:
            shutil.rmtree(run.out)
    return results


def main() -> int:
    """Print the table; exit code 1 if a run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="of all runs together (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/kills"), help="a folder for the runs")
    args = parser.parse_args()
    prepare()
    results = kill_runs(args.work.absolute(), args.kills, args.seed)
    print(table(results))
    return 1 if any(result.differing for result in results) else 0


def prepare() -> None:
    """Import what the executable imports, before processes are forked."""
    import matplotlib.pyplot  # noqa: F401
    import torch
    from tqdm import tqdm

    import nft_pipeline.training.run.train_command
    import nft_pipeline.training.run.trainer  # noqa: F401

    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is shared by forked processes, and one that is killed may hold it


if __name__ == "__main__":
    raise SystemExit(main())
