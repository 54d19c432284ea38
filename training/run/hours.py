"""How long a run takes: what it does, counted from its settings, times what each of these things took when timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..data.sources import HELD_OUT_EVERY, HELD_OUT_FROM
from ..dial.budget import calibration_pictures
from ..dial.calibrate import LEAST, LEVELS, SHARES
from ..learn.calibration import NOISE_LEVELS
from ..settings.config import TrainConfig
from ..show.observer import DIAL_PROMPTS, GRID_PROMPTS, GRID_STRENGTHS
from ..show.sweep import GROUP

REPEATED = 20.0  # seconds: what took less is timed a second time, without what only the first time costs
HEAD_DRAWS = 2  # noises of a held-out picture that the head is measured on


@dataclass(frozen=True)
class Work:
    """What a run does, in numbers.

    Args:
        prompts: texts to encode.
        encoded: pictures of a folder, to encode.
        drawn: pictures of the base or the old model, to learn from.
        steps: optimiser steps.
        grids, sweeps, dial: pictures that show or measure the adapter, in grids and for its card, in sweeps, and in the
            calibration of its dial; in passes, so that a picture in two passes counts twice.
        read: pictures that the alpha head reads to be measured.
    """

    prompts: int
    encoded: int
    drawn: int
    steps: int
    grids: int
    sweeps: int
    dial: int
    read: int


def passes(config: TrainConfig, strength: float) -> int:
    """Forwards of a step at a strength, before a calibration has found a cheaper way."""
    return 1 if strength == 0 or (config.kind != "positive" and strength == 1) else 2


def work_of(config: TrainConfig, prompts: int, held_prompts: int, pictures: int) -> Work:
    """What a run does.

    Args:
        prompts, held_prompts: how many there are to train on and to measure on.
        pictures: how many a folder has; 0 without one.
    """
    positive, total = config.kind == "positive", config.total_steps
    if config.online:
        drawn, encoded = config.rounds * config.round_prompts * config.group_size, prompts
    elif pictures:
        drawn, encoded = 0, prompts
    else:
        held = config.held_out_size if positive else 0
        wordings = len(config.pool_wordings)
        asked = ((prompts, config.pool_size), (held_prompts, held))
        drawn = config.pool_size + held
        encoded = sum(min(count, size) + min(count * wordings, size) for count, size in asked)
    strengths = sum(passes(config, strength) for strength in config.sweep_strengths)
    shown = (len(config.sample_prompts) or min(GRID_PROMPTS, held_prompts)) if config.samples_every else 0
    times = 0 if not shown else -(-total // config.samples_every) + 1
    grids = shown * (times * sum(passes(config, strength) for strength in GRID_STRENGTHS) + strengths)
    rounds = (config.rounds - 1) // config.sweep_every if config.online and config.sweep_every else 0
    dial = calibration_pictures(config)
    dial = dial if dial >= LEAST and (positive or config.weights) else 0
    judged = pictures // HELD_OUT_EVERY if pictures >= HELD_OUT_FROM else pictures  # all where it is cross-validated
    held_out = (judged if pictures else config.held_out_size) if positive else 0
    read = len(NOISE_LEVELS) * HEAD_DRAWS * held_out
    if positive and dial:
        read += int(min(LEVELS, config.pool_steps) * SHARES["base"] * dial)
    tried = shown + min(held_prompts, -(-config.sweep_size // GROUP)) + (min(held_prompts, DIAL_PROMPTS) if dial else 0)
    sweeps = (rounds + 1) * strengths * config.sweep_size
    return Work(encoded + tried, pictures, drawn, total, grids, sweeps, dial, read)


@dataclass
class Pace:
    """Seconds that a machine takes, 0 for what was not timed.

    Args:
        prompt, encode, decode, score, read: for one prompt, or one picture: encoded, decoded, scored, read by the head.
        draw: for one picture: what a call takes beside its denoising steps, and a denoising step.
        show: the same for a picture that shows the adapter, in one pass, its decoding included.
        step: for an optimiser step.
    """

    prompt: float = 0.0
    encode: float = 0.0
    decode: float = 0.0
    score: float = 0.0
    read: float = 0.0
    draw: tuple[float, float] = (0.0, 0.0)
    show: tuple[float, float] = (0.0, 0.0)
    step: float = 0.0


def seconds_of(work: Work, pace: Pace, denoising_steps: int, shown_steps: int | None = None) -> dict[str, float]:
    """Seconds by phase, of the phases that the run has.

    Args:
        work, pace: of the run.
        denoising_steps: of a picture.
        shown_steps: of a picture in a grid or a sweep; None for as many.
    """
    draw, dial = (start + denoising_steps * step for start, step in (pace.draw, pace.show))
    show = pace.show[0] + (shown_steps or denoising_steps) * pace.show[1]
    phases = {
        "encoding prompts": work.prompts * pace.prompt,
        "encoding pictures": work.encoded * pace.encode,
        "drawing and scoring": work.drawn * (draw + pace.decode + pace.score),
        "training": work.steps * pace.step,
        "sample grids": work.grids * show,
        "calibration": work.dial * (dial + pace.score) + work.read * pace.read,
        "sweeps": work.sweeps * (show + pace.score),
    }
    return {phase: seconds for phase, seconds in phases.items() if seconds > 0}


def timed(act: Callable[[], object]) -> float:
    """Seconds that `act` takes; the second time, where the first is short."""
    for _ in range(2):
        started = time.monotonic()
        act()
        seconds = time.monotonic() - started
        if seconds > REPEATED:
            break
    return seconds


def timed_drawing(draw: Callable[[int], object], rows: int) -> tuple[float, float]:
    """What drawing takes for each of `rows` pictures: beside the denoising steps, and a step. `draw` takes how many."""
    two = timed(lambda: draw(2))
    if two > REPEATED:
        return 0.0, two / 2 / rows
    four = timed(lambda: draw(4))
    step = max(four - two, 0.0) / 2 or two / 2
    return max(two - 2 * step, 0.0) / rows, step / rows


def duration(seconds: float) -> str:
    """In words, to two figures: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = math.ceil(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(5 * round(minutes / 5), 60)
    return f"{hours} h {rest} min" if hours < 10 and rest else f"{round(minutes / 60)} h"


class Clock:
    """How much of a run is left, from what its pictures and steps took since it was started or went on.

    Args:
        config: the run's settings.
    """

    def __init__(self, config: TrainConfig) -> None:
        work = work_of(config, 0, GRID_PROMPTS, 0)
        longer = (config.sweep_steps or config.pool_steps) / config.pool_steps
        self.config, self._after = config, work.dial + longer * work.sweeps  # sweeps of rounds as if all were to come
        self._drawn = self._steps = 0
        self._drawing = self._stepping = 0.0

    def drew(self, pictures: int, seconds: float) -> None:
        """So many pictures were drawn and scored in so many seconds."""
        self._drawn, self._drawing = self._drawn + pictures, self._drawing + seconds

    def stepped(self, seconds: float) -> None:
        """An optimiser step was made in so many seconds."""
        self._steps, self._stepping = self._steps + 1, self._stepping + seconds

    def left(self, step: int, rounds: int) -> float | None:
        """Seconds until the end of the run.

        Args:
            step: optimiser steps that are made.
            rounds: rounds whose pictures are drawn.

        Returns:
            None before the first step. Without the time of a picture, which a run that goes on need not know, the
            pictures that measure the adapter are left out.
        """
        if not self._steps:
            return None
        seconds = (self.config.total_steps - step) * self._stepping / self._steps
        if self._drawn:
            to_draw = max(0, self.config.rounds - rounds) * self.config.round_prompts * self.config.group_size
            seconds += (to_draw + self._after) * self._drawing / self._drawn
        return seconds
