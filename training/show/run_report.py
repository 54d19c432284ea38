"""What a run measured, as run_report.json: the numbers its card on the Hub is drawn from (hub_cards/report.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nft_pipeline.hub_cards.report import Alpha, Curve, Point, RunReport, Sample, Trained

from ..devices import processes
from ..learn.calibration import Calibration
from ..settings.config import TrainConfig
from ..settings.public import public_reward
from .sweep import STATISTICS, Sweep
from .watch import choose_strength, hacking_verdict


def run_report(
    config: TrainConfig,
    trained: Trained,
    calibration: Sequence[Calibration] = (),
    sweep: Sweep | None = None,
    samples: Sequence[Sample] = (),
) -> RunReport:
    """The report of a run.

    Args:
        config: its settings.
        trained: how the run went, see `trained_facts`.
        calibration: how well the head does on held-out pictures; a noise level at which all pictures were liked, or
            none, has no AUC and is left out.
        sweep: the last sweep, None if there was none.
        samples: the pictures beside the adapter.
    """
    alpha = tuple(Alpha(c.noise_level, c.auc, c.error, c.n) for c in calibration if c.auc == c.auc)
    if sweep is None:
        return RunReport(alpha=alpha, samples=tuple(samples), trained=trained)
    watched = () if sweep.watched is None else (sweep.watched,)
    return RunReport(
        rewards=tuple(curve(sweep, name, name in sweep.trained) for name in (*sweep.trained, *watched, *sweep.others)),
        alpha=alpha,
        samples=tuple(samples),
        hacking=hacking_verdict(sweep),
        strength_range=choose_strength(sweep).span,
        trained=trained,
    )


def curve(sweep: Sweep, name: str, trained: bool = False) -> Curve:
    """A reward, or a statistic of the pictures, over strength."""
    points = tuple(
        Point(point.strength, value.mean, value.error if value.error == value.error else None, value.n)
        for point in sweep.points
        if (value := point.values[name]).n
    )
    return Curve(public_reward(name), trained, points, sweep.prompts, "standard error")


def statistics_curves(sweep: Sweep) -> tuple[Curve, ...]:
    """The statistics of the pictures over strength, for the run's own page."""
    return tuple(curve(sweep, name) for name in STATISTICS)


def trained_facts(
    config: TrainConfig, pictures: int, seconds: float, device: torch.device, steps: int | None = None
) -> Trained:
    """How the run went.

    Args:
        pictures: how many pictures it learned from.
        seconds: the time of all its parts, those before a stop included.
        device: the device it computed on.
        steps: optimiser steps that it made; None for all that the settings say.
    """
    steps = config.total_steps if steps is None else steps
    if config.online:
        data = f"{pictures} pictures, sampled in {steps // config.round_steps} rounds"
    elif config.data is not None:
        data = f"{pictures} pictures of a folder" + (", made by the base model" if config.made_by_base else "")
    else:
        data = f"{pictures} pictures sampled from the base model"
        data += f", asked for as {', '.join(config.pool_wordings)}" if config.pool_wordings else ""
    return Trained(
        data=data,
        rounds=max(1, steps // config.round_steps) if config.online else 1,
        passes=round(steps * config.batch / pictures, 4),
        anchor="none" if config.eta0 is None else f"eta0 {config.eta0:g}",
        hardware=hardware(device),
        hours=round(seconds / 3600, 4),
    )


def hardware(device: torch.device) -> str:
    """What it ran on, without the machine's name: "2 x NVIDIA H100 80GB HBM3" or "CPU, 8 threads"."""
    count = processes.count()
    threads = torch.get_num_threads()
    what = f"CPU, {threads} thread{'s' * (threads != 1)}"
    if device.type == "cuda":
        what = torch.cuda.get_device_name(device)
    return what if count == 1 else f"{count} x {what}"
