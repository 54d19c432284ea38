"""A training run from settings to adapter: pictures -> scores -> objective -> checkpoint -> adapter.

The same call resumes: a pool and a checkpoint found in the run's folder are used if they belong to the same settings.
A damaged checkpoint gives way to the one before, and a damaged pool is made again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import Adapter, BaseModel, fingerprint, read_adapter, write_adapter
from nft_pipeline.hub_cards.report import REPORT_FILE, RunReport, Trained

from ..bases.base import TrainBase
from ..bases.registry import train_base
from ..data.pool import Pool, load_pool, pool_key, save_pool
from ..data.sources import offline_pools, rewards_of
from ..devices import processes
from ..devices.memory import memory_advice
from ..devices.precision import choose_precision
from ..devices.quantised import quantise
from ..learn.calibration import Calibration, calibrate, calibration_table
from ..learn.export import make_adapter, tilt_words
from ..learn.learner import Learner
from ..learn.objective import Objective
from ..learn.online import Prompts, baseline_warning, sample_round
from ..rewards.find import find_prompts
from ..settings.config import TrainConfig
from ..show.live import averaged
from ..show.observer import Observer
from ..show.run_report import run_report
from ..show.watch import choose_strength
from .checkpoint import CheckpointError, by_step, load_checkpoint, rotate, save_checkpoint
from .hours import Clock, duration
from .run_folder import ADAPTER, is_finished, mark_finished, only_run
from .sharding import Sharding, check_sharding
from .stopping import Stopped, Stopper

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainResult:
    """What a run made: the adapter, where it is, how well alpha does on held-out samples, seconds by phase since it was
    started or went on, and the report beside the adapter."""

    adapter: Adapter
    folder: Path
    calibration: list[Calibration]
    seconds: dict[str, float]
    report: RunReport = field(default_factory=RunReport)


def train(config: TrainConfig, out: Path, *, say: Say = print, device: str = "auto") -> TrainResult:
    """Run `config` and write `out/adapter`.

    Args:
        config: the run's settings.
        out: the run's folder; pools, checkpoint, records, sample grids, report.html and adapter go there.
        say: called with one line per phase.
        device: "auto" is CUDA if there is one, else the CPU.

    A run that is finished is not trained again: its adapter is read and returned, without calibration.

    Raises:
        Stopped: a signal asked for it; the same call goes on.
        ConfigError: or RewardError, OptimalityError, PoolError, DataError, CheckpointError, TrainingError,
            TrackerError, AdapterError; each is described where it is defined.
    """
    processes.start()
    check_sharding(config)
    if processes.rank() != 0:
        say = _silent
    out.mkdir(parents=True, exist_ok=True)
    with only_run(out) if processes.rank() == 0 else nullcontext():
        if is_finished(out, config):
            folder = out / ADAPTER
            say(f"finished already: the adapter is in {folder}. To train it again, give another --out, or delete it")
            report = folder / REPORT_FILE
            return TrainResult(
                read_adapter(folder),
                folder,
                [],
                {},
                RunReport.from_json(report.read_bytes()) if report.is_file() else RunReport(),
            )
        return _train(config, out, say, device)


def _train(config: TrainConfig, out: Path, say: Say, device: str) -> TrainResult:
    """Train, or go on, in a folder that is this process's alone."""
    base, reason = load_base(config, device)
    base_identity = BaseModel(id=config.base_model, revision=None, fingerprint=fingerprint(base.denoiser))
    sharding = Sharding(base, say)
    with Stopper() as stopper:
        run = Run(config, out, base, base_identity, sharding, say, stopper)
        learner = None
        try:
            if config.online:
                learner, rate, pictures = run.online(reason)
                held_out = None
            else:
                learner, pool, held_out = run.offline(reason)
                rate, pictures = pool.r.mean().item(), len(pool)
            run.keep(learner, rate, pictures)
            run.grid(learner)
            run.calibrate(learner)
            run.look_at_last(learner)
            learner.use_average()
            calibration = _calibration(learner, held_out, say)
            found = run.observer.finish(pictures, run.seconds_before + sum(run.seconds.values()), calibration)
            dial = None if run.observer.calibrated is None else run.observer.calibrated.dial
            adapter = make_adapter(
                learner, base_identity, rate, pictures, calibration, found.strength, found.shift, dial
            )
            if config.kind != "positive" and dial is None:
                say(tilt_words(learner, found.shift))
        finally:
            run.observer.close()
            if learner is not None:
                learner.remove()
    folder = out / ADAPTER
    if processes.rank() == 0:
        folder = write_adapter(folder, adapter, found.files)
        mark_finished(out, config)
        kept = by_step(run.path).values() if config.keep_last == 1 else ()  # more of them are there for a person
        for path in (run.path, out / "round.safetensors", *kept):
            path.unlink(missing_ok=True)
    say(f"adapter written to {folder}")
    return TrainResult(adapter, folder, calibration, run.seconds, found.report)


def find_device(device: str) -> torch.device:
    """The device of this name; "auto" is CUDA if there is one, else the CPU."""
    return torch.device(device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


def load_base(config: TrainConfig, device: str = "auto") -> tuple[TrainBase, str]:
    """The run's base model, whose parts go to the device when they are needed, and in words why it computes in the
    number format it does.

    Raises:
        TrainingError: a family the trainer does not know, or a package that `quantise` needs is not installed.
    """
    where = find_device(device)
    dtype, reason = choose_precision(config.precision, where)
    # Beside a CPU weights are kept in what they compute in; frozen ones need no more.
    is_small = where.type != "cpu" and dtype != torch.float32
    kept: dict[str, Any] = {"dtype": {"default": dtype, "vae": torch.float32}} if is_small else {}
    guided = DiffusionNFTPipeline.from_pretrained(config.base_model, **kept)
    call = {"num_inference_steps": config.pool_steps, "guidance_scale": config.guidance_scale}
    call |= {key: value for key, value in guided.call_defaults.items() if key not in call}
    if config.resolution is not None:
        call |= {"height": config.resolution, "width": config.resolution}
    if config.num_frames is not None:
        call["num_frames"] = config.num_frames
    base = train_base(guided.unwrap(), call, dtype, where)
    if config.quantise != "none":
        quantise(base.denoiser, config.quantise, dtype, where)
    return base, reason


class Run:
    """The two kinds of run, over one base model and one folder."""

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        base: TrainBase,
        base_identity: BaseModel,
        sharding: Sharding,
        say: Say,
        stopper: Stopper,
    ) -> None:
        self.config, self.out, self.base, self.say, self.stopper = config, out, base, say, stopper
        self.base_identity, self.sharding = base_identity, sharding
        self.seconds: dict[str, float] = {}
        self.seconds_before = 0.0  # that the run had taken when it was stopped
        self.path, self.clock = out / "checkpoint.pt", Clock(config)
        self.observer = Observer(config, base, base_identity, out, say, lambda: self.stopper.requested)

    def offline(self, reason: str) -> tuple[Learner, Pool, Pool | None]:
        """A pool once, then optimiser steps on it."""
        config, started = self.config, time.monotonic()
        is_there = (self.out / "pool.safetensors").exists()
        self.sharding.first(self._make_pools)
        processes.wait()
        if config.data is None and not is_there:
            drawn = config.pool_size + (config.held_out_size if config.kind == "positive" else 0)
            self.clock.drew(drawn, time.monotonic() - started)
        pool, held_out = offline_pools(self.base, config, self.out, _silent)
        self.base.release(*self.base.encoders, *(() if self.observer.draws else ("vae",)))
        self.seconds["pool"] = time.monotonic() - started
        self.say(Objective.of(config).describe(online=False))
        learner = Learner(self.base, pool.conditions, config)
        self._resume(learner)
        started = time.monotonic()
        self.say(f"training {config.steps} steps in {reason}")
        self._optimise(learner, pool, config.steps)
        self.seconds["train"] = time.monotonic() - started
        self._save(learner)
        return learner, pool, held_out

    def _make_pools(self) -> None:
        if processes.rank() == 0:
            offline_pools(self.base, self.config, self.out, self.say)

    def online(self, reason: str) -> tuple[Learner, float, int]:
        """Rounds: sample with `old`, score, a few steps, and `old` follows. Returns last mean r and pictures, too."""
        config = self.config
        assert config.prompts is not None
        prompts = Prompts(self.base, find_prompts(config.prompts), config)
        rewards = rewards_of(config)
        self.say(Objective.of(config).describe(online=True, rounds=config.rounds))
        learner = Learner(self.base, prompts.one, config)
        self._resume(learner)
        self.say(f"training {config.rounds} rounds of {config.round_steps} steps in {reason}")
        self.seconds |= {"pool": 0.0, "train": 0.0}
        while learner.round_number < config.rounds:
            self._look_if_due(learner)
            started = time.monotonic()
            pool = self._round_pool(learner, prompts, rewards)
            learner.mean_r = pool.r.mean().item()
            self.seconds["pool"] += time.monotonic() - started
            started = time.monotonic()
            self._optimise(learner, pool, (learner.round_number + 1) * config.round_steps, quiet=True)
            learner.finish_round()
            self._save(learner)
            self.seconds["train"] += time.monotonic() - started
            left = self.clock.left(learner.step_number, learner.round_number)
            self.say(
                f"round {learner.round_number} of {config.rounds}: tilt {learner.tilt.theta:.3g} (M8, if every round "
                f"converges)" + ("" if left is None else f"; the whole run has about {duration(left)} left")
            )
        return learner, learner.mean_r, self._sampled(learner)

    def calibrate(self, learner: Learner) -> None:
        """Find out what each setting of the finished adapter's dial does."""
        started = time.monotonic()
        self.sharding.first(lambda: self.observer.calibrate(learner))
        self._stop_if_asked(learner)
        self.seconds["calibrate"] = time.monotonic() - started

    def look_at_last(self, learner: Learner) -> None:
        """Make the sweep and the pictures of the finished run."""
        started = time.monotonic()
        self._look(learner, again=True)
        self.sharding.first(lambda: self.observer.draw_for_card(learner))
        self._stop_if_asked(learner)
        self.seconds["sweep"] = self.seconds.get("sweep", 0.0) + time.monotonic() - started

    def keep(self, learner: Learner, rate: float, pictures: int) -> None:
        """Write the adapter as it was trained, before anything else can fail; what measures it writes it again."""
        with averaged(learner):
            adapter = make_adapter(learner, self.base_identity, rate, pictures)
        if processes.rank() == 0:
            folder = write_adapter(self.out / "adapter", adapter)
            self.say(f"adapter written to {folder}, not yet measured; the same command goes on from here if that fails")

    def grid(self, learner: Learner) -> None:
        """Draw the sample grid if one is due at this step and not there yet."""
        self.sharding.first(lambda: self.observer.grid(learner))

    def _look_if_due(self, learner: Learner) -> None:
        """An online run's sweep every so many rounds, if it was not made before a stop."""
        every, number = self.config.sweep_every, learner.round_number
        at_start = learner.step_number == number * self.config.round_steps  # not where a stopped run was in a round
        if every and number and number % every == 0 and at_start:
            self._look(learner)

    def _look(self, learner: Learner, again: bool = False) -> None:
        """A sweep, and the adapter as it is now kept beside if it is the best so far.

        The sweep is written down last, so that a run that was killed in between makes both again.
        """
        sweep = self.sharding.first(lambda: self.observer.look(learner, again))
        self._stop_if_asked(learner)
        if sweep is None:
            return
        if self.config.keep_best and self.observer.is_best(sweep, learner.step_number):
            with averaged(learner):
                pictures, strength = self._sampled(learner), choose_strength(sweep).strength
                best = make_adapter(learner, self.base_identity, learner.mean_r, pictures, (), strength, sweep.shift)
            report = run_report(self.config, Trained(), (), sweep)
            write_adapter(self.out / "best", best, {REPORT_FILE: report.to_json().encode()})
            self.say(f"best so far, written to {self.out / 'best'}")
        self.observer.record(sweep, learner.step_number)

    def _sampled(self, learner: Learner) -> int:
        """Pictures that an online run has sampled."""
        return max(1, learner.round_number) * self.config.round_prompts * self.config.group_size

    def _round_pool(self, learner: Learner, prompts: Prompts, rewards: dict[str, Any]) -> Pool:
        """The round's pool: the one a stopped run left, or sampled now.

        It is kept beside the checkpoint until the round ends, and the checkpoint is never older than the round. So a
        reward never has to score the same pictures again.
        """
        config, number = self.config, learner.round_number
        path, key = self.out / "round.safetensors", pool_key({"settings": config.to_dict(), "round": number})
        pool, drawn = load_pool(path, key, self.say), prompts.of_round(number)
        if pool is not None:
            # The first versions kept the conditions of all prompts in it.
            return pool if pool.conditions else replace(pool, conditions=drawn.conditions)
        started = time.monotonic()
        pool, found = sample_round(
            self.base,
            learner.roles,
            drawn,
            prompts.empty,
            rewards,
            config,
            number,
            stop=lambda: self._stop_if_asked(learner),
            together=self.sharding.is_split,
        )
        self.clock.drew(len(drawn.which), time.monotonic() - started)
        self.say(f"round {number + 1} of {config.rounds}: {found.describe()}")
        if number == 0 and (warning := baseline_warning(config, pool.r.mean().item())):
            self.say(warning)
        self.observer.records.forget_after("rounds", number)
        said = {"mean": found.mean, "spread": found.spread, "flat_groups": found.flat_groups, "dropped": found.dropped}
        line = {"round": number + 1, **said, "tilt_old": learner.tilt.old}
        self.observer.records.log("rounds", line, learner.step_number)
        if processes.rank() == 0:
            save_pool(replace(pool, conditions={}), path, key)  # they are made again from the prompts
        return pool

    def _optimise(self, learner: Learner, pool: Pool, until: int, quiet: bool = False) -> None:
        """Steps up to number `until`, with checkpoints and a log; signals stop it."""
        config, smooth = self.config, dict[str, float]()
        with tqdm(
            total=until,
            initial=learner.step_number,
            desc=f"round {learner.round_number + 1} of {config.rounds}: training" if config.online else "training",
            unit="step",
            disable=processes.rank() != 0,
            leave=not quiet,
        ) as bar:
            while learner.step_number < until:
                self.grid(learner)
                self._stop_if_asked(learner)  # before the next step, or a grid that was interrupted is never drawn
                started = time.monotonic()
                with memory_advice("training", micro_batch=config.micro_batch):
                    losses = learner.step(pool)
                self.clock.stepped(time.monotonic() - started)
                smooth = {name: 0.95 * smooth.get(name, loss) + 0.05 * loss for name, loss in losses.items()}
                self.observer.records.log("losses", {"step": learner.step_number, **losses}, learner.step_number)
                bar.update()
                left = duration(self.clock.left(learner.step_number, learner.round_number + 1) or 0.0)
                bar.set_postfix({**{name: f"{loss:.4f}" for name, loss in smooth.items()}, "left in all": left})
                due = config.checkpoint_every and learner.step_number % config.checkpoint_every == 0
                if due and learner.step_number < until:
                    self._save(learner)

    def _resume(self, learner: Learner) -> None:
        if state := load_checkpoint(self.path, self.config.to_dict(), self.say):
            learner.load_state_dict(state["learner"])
            self.seconds_before = state.get("seconds", 0.0)
            self.say(f"resumed at step {learner.step_number}")
        self.observer.begin(learner)

    def _save(self, learner: Learner) -> None:
        """Write a checkpoint. A full disk does not end the run: it goes on and tries again next time."""
        if processes.rank() != 0:
            return
        try:
            save_checkpoint(self.path, self._state(learner))
            rotate(self.path, learner.step_number, self.config.keep_last)
        except CheckpointError as error:
            self.say(f"warning: {error}; training goes on, the next checkpoint tries again")

    def _stop_if_asked(self, learner: Learner) -> None:
        if not processes.any_true(self.stopper.requested):
            return
        if processes.rank() == 0:
            save_checkpoint(self.path, self._state(learner))
        raise Stopped(f"stopped at step {learner.step_number} of {self.config.total_steps}, saved to {self.path}")

    def _state(self, learner: Learner) -> dict[str, Any]:
        seconds = self.seconds_before + sum(self.seconds.values())
        return {"settings": self.config.to_dict(), "learner": learner.state_dict(), "seconds": seconds}


def _calibration(learner: Learner, held_out: Pool | None, say: Say) -> list[Calibration]:
    if learner.head is None or held_out is None:
        return []
    learner.head.eval()
    found = calibrate(learner.alpha, held_out)
    say("alpha on held-out samples:\n" + calibration_table(found))
    return found


def _silent(line: str) -> None:
    pass
