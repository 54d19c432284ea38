"""What a run writes down as it goes: JSON lines, TensorBoard, and other trackers if asked for.

    losses    every step           the mean losses; learning rate, norm of the LoRA's gradient, norm of the LoRA as a
                                   change of weights, and of a policy the mean square of how far its outputs moved
    speed     every step           seconds, and GiB of memory at their peak: the GPU's, or without one the process's
    rounds    every online round   rewards and their spread, groups that teach nothing, dropped samples, tilt
    sweeps    every sweep          a line per strength: rewards, statistics of the pictures, the watch's verdict

The JSON lines are the record: the report and a run that goes on read them. When a stopped run goes on, lines of steps
that it does again are dropped from them. `pandas.read_json("losses.jsonl", lines=True)` makes a table of one. Runs of
earlier versions have a CSV beside each; nothing reads it, and a run that goes on leaves it as it is.
TensorBoard's files are written by tensorboardX, 3 MB with all it needs where TensorBoard itself brings 160; any
TensorBoard reads them. W&B and Trackio go through accelerate's trackers.
"""

from __future__ import annotations

import importlib.util
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nft_pipeline.files.atomic import atomic_write_bytes
from nft_pipeline.files.private import without_secrets

from ..settings.config import TrainConfig
from ..settings.public import public_settings

TABLES = ("losses", "rounds", "sweeps", "speed")
FLUSH_SECONDS = 10


class TrackerError(ValueError):
    """A tracker that was asked for cannot be used."""


def check_trackers(names: Sequence[str]) -> None:
    """Whether the packages of TensorBoard's files and of the trackers asked for are there.

    Raises:
        TrackerError: naming those that are missing, and what to do.
    """
    missing = [name for name in ("tensorboardX", *names) if importlib.util.find_spec(name) is None]
    if missing:
        extra = 'pip install "diffusion-nft[train]"' if missing[0] == "tensorboardX" else f"pip install {missing[0]}"
        out = "" if missing[0] == "tensorboardX" else f", or take {missing[0]} out of trackers"
        raise TrackerError(f"the package {missing[0]} is not installed: {extra}{out}")


class Records:
    """A run's tables, in its folder.

    Args:
        out: the run's folder.
        config: its settings; `trackers` names those beside TensorBoard.
        step: the step the run goes on from; TensorBoard then hides what was written after it.
        writes: False for all processes but the first: they write nothing.

    Raises:
        TrackerError: a package is missing.
    """

    def __init__(self, out: Path, config: TrainConfig, step: int = 0, writes: bool = True) -> None:
        self._out, self._writes = out, writes
        self._trackers: list[Any] = []
        if not writes:
            return
        check_trackers(config.trackers)
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1, flush_secs=FLUSH_SECONDS)
        for name in config.trackers:
            self._trackers.append(_started(name, config, _identity(out)))

    def log(self, table: str, entry: Mapping[str, Any], step: int) -> None:
        """A line into a table.

        Args:
            table: one of `TABLES`.
            entry: numbers and texts by name, or dicts of them.
            step: how many optimiser steps had been done.
        """
        if not self._writes:
            return
        with (self._out / f"{table}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        flat = dict(_flat(entry))
        at = f"strength {entry['strength']:g}/" if "strength" in entry else ""
        numbers = {
            f"{table}/{at}{without_secrets(name)}": float(value)
            for name, value in flat.items()
            if isinstance(value, (int, float)) and name not in ("step", "round", "strength")
        }
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)
        for tracker in self._trackers:
            tracker.log(numbers, step=step)

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Give a picture to the trackers that can show pictures."""
        if self._writes:
            self._board.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
            for tracker in self._trackers:
                if hasattr(tracker, "log_images"):  # accelerate's Trackio has numbers only
                    tracker.log_images({name: [picture]}, step=step)

    def rows(self, table: str) -> list[dict[str, Any]]:
        """The lines of a table, flat; a line cut short by a kill is left out."""
        return read_table(self._out, table)

    def forget_after(self, table: str, number: int) -> None:
        """Drop a table's lines of steps (of rounds, for `rounds`) above `number`: they are about to be done again."""
        lines = self._lines(table) if self._writes else []
        kept = [line for line in lines if _number(line) <= number]
        if len(kept) < len(lines):
            atomic_write_bytes(self._path(table), "".join(line + "\n" for line in kept).encode())

    def close(self) -> None:
        """Finish the files and say goodbye to the trackers."""
        if self._writes:
            self._board.close()
            for tracker in self._trackers:
                tracker.finish()

    def _path(self, table: str) -> Path:
        return self._out / f"{table}.jsonl"

    def _lines(self, table: str) -> list[str]:
        return _lines_of(self._path(table))


def read_table(out: Path, table: str) -> list[dict[str, Any]]:
    """The lines of a table in a run's folder, flat; a line cut short by a kill is left out."""
    lines = _lines_of(out / f"{table}.jsonl")
    return [dict(_flat(entry)) for line in lines if (entry := _entry(line)) is not None]


def _lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _flat(entry: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """{"mean": {"ocr": 0.4}} as "mean ocr", 0.4."""
    for name, value in entry.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name} ")
        else:
            yield f"{before}{name}", value


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _number(line: str) -> float:
    """The step or round of a line; one cut short by a kill counts as after everything."""
    entry = _entry(line) or {}
    number = entry.get("step", entry.get("round"))
    return number if isinstance(number, int) else float("inf")


def _identity(out: Path) -> str:
    """The run's name on a tracker's server; it stays the same when the run goes on."""
    path = out / "tracker_id.txt"
    if not path.is_file():
        atomic_write_bytes(path, secrets.token_hex(4).encode())
    return path.read_text(encoding="utf-8").strip()


def _started(name: str, config: TrainConfig, identity: str) -> Any:
    """A tracker of accelerate's, begun; the project is called diffusion-nft."""
    from accelerate import PartialState
    from accelerate.tracking import TrackioTracker, WandBTracker

    PartialState()  # accelerate's trackers ask it which process they are in
    if name == "wandb":
        tracker = WandBTracker("diffusion-nft", name=config.name, id=identity, resume="allow")
    else:
        tracker = TrackioTracker("diffusion-nft", name=f"{config.name}-{identity}", resume="allow")
    tracker.start()
    tracker.store_init_configuration(public_settings(config.to_dict()))
    return tracker
