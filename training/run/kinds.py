"""The two kinds of run, offline on one pool and online in rounds, with what both do between steps and at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from nft_pipeline.adapter import BaseModel, read_adapter, write_adapter
from nft_pipeline.hub_cards.report import REPORT_FILE, Trained

from ..bases.base import Conditions, TrainBase
from ..data.pool import Pool, load_pool, pool_key, save_pool
from ..data.scorers import RunRewards
from ..data.sources import offline_pools
from ..devices import processes
from ..devices.memory import memory_advice, peak_gib
from ..learn.early import EarlyStop
from ..learn.export import begin_from, make_adapter
from ..learn.folds import folds_of
from ..learn.learner import Learner
from ..learn.objective import Objective
from ..learn.online import Prompts, baseline_warning, sample_round
from ..rewards.find import find_prompts
from ..settings.config import TrainConfig
from ..show.live import averaged
from ..show.observer import Observer
from ..show.run_report import run_report
from ..show.watch import choose_strength
from .checkpoint import CheckpointError, load_checkpoint, rotate, save_checkpoint
from .hours import Clock, duration
from .sharding import Sharding
from .stopping import Stopped, Stopper

Say = Callable[[str], None]
EXPORTS = "adapters"  # folder of the adapters that are kept while a run goes on


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
        self.rewards = RunRewards(config, base.device)
        self.seconds: dict[str, float] = {}
        self.seconds_before = 0.0  # that the run had taken when it was stopped
        self.path, self.clock = out / "checkpoint.pt", Clock(config)
        self.early: EarlyStop | None = None
        self.observer = Observer(config, base, base_identity, out, self.rewards, say, lambda: self.stopper.requested)

    def offline(self, reason: str) -> tuple[Learner, Pool, Pool | None]:
        """A pool once, then optimiser steps on it."""
        config, started = self.config, time.monotonic()
        is_there = (self.out / "pool.safetensors").exists()
        self.sharding.first(self._make_pools)
        if processes.any_true(self.stopper.requested):
            raise Stopped("stopped while the pool was made; what there is of it is kept")
        if config.data is None and not is_there:
            drawn = config.pool_size + (config.held_out_size if config.kind == "positive" else 0)
            self.clock.drew(drawn, time.monotonic() - started)
        pool, held_out = offline_pools(self.base, config, self.out, silent, self.rewards)
        if self.base.device.type != "cpu":
            self.rewards.let_go()  # training needs the room
        self.base.release(*self.base.encoders, *(() if self.observer.draws else ("vae",)))
        self.seconds["pool"] = time.monotonic() - started
        self.say(Objective.of(config).describe(online=False))
        fold = folds_of(pool.r) if config.kind == "positive" and held_out is None else None
        learner = self._learner(pool.conditions, fold)
        if config.stop_early and config.kind == "positive":
            self.early = EarlyStop(learner, held_out)
        self._resume(learner)
        started = time.monotonic()
        self.say(f"training {config.steps} steps in {reason}")
        self._optimise(learner, pool, config.steps)
        self.seconds["train"] = time.monotonic() - started
        self._save(learner)
        if self.early is not None:
            self.early.use_best()
        return learner, pool, held_out

    def _learner(self, conditions: Conditions, fold: Tensor | None = None) -> Learner:
        """A learner at its start, which `init_from` may give."""
        learner = Learner(self.base, conditions, self.config, fold)
        if self.config.init_from is not None and not self.path.is_file():
            adapter = read_adapter(self.config.init_from)
            begin_from(learner, adapter)
            self.say(f"beginning from the adapter {adapter.config.name} in {self.config.init_from}")
        return learner

    def _make_pools(self) -> None:
        if processes.rank() == 0:
            with suppress(_StoppedInPool):
                offline_pools(self.base, self.config, self.out, self.say, self.rewards, self._stop_in_pool)

    def _stop_in_pool(self) -> None:
        if self.stopper.requested:
            raise _StoppedInPool

    def online(self, reason: str) -> tuple[Learner, float, int]:
        """Rounds: sample with `old`, score, a few steps, and `old` follows. Returns last mean r and pictures, too."""
        config = self.config
        assert config.prompts is not None
        prompts = Prompts(self.base, find_prompts(config.prompts), config)
        rewards = self.rewards.trained()
        self.say(Objective.of(config).describe(online=True, rounds=config.rounds))
        learner = self._learner(prompts.one)
        self._resume(learner)
        self.say(f"training {config.rounds} rounds of {config.round_steps} steps in {reason}")
        self.seconds |= {"pool": 0.0, "train": 0.0}
        while learner.round_number < config.rounds:
            self._look_if_due(learner)
            if self._is_hacked(learner):
                self.say(f"the run ends here, after round {learner.round_number} of {config.rounds}: hacking was seen")
                break
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

    def _is_hacked(self, learner: Learner) -> bool:
        """Whether the run is to end because the sweep at this step, made now or before a stop, says "seen"."""
        wanted = self.config.stop_when_hacked
        return wanted and processes.any_true(self.observer.has_seen_hacking(learner.step_number))

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
                if self.early is not None and processes.any_true(self.early.is_over):
                    self.say(f"nothing gained on held-out samples: the run ends after step {learner.step_number}")
                    break
                self.grid(learner)
                self._stop_if_asked(learner)  # before the next step, or a grid that was interrupted is never drawn
                started = time.monotonic()
                with memory_advice("training", micro_batch=config.micro_batch):
                    losses = learner.step(pool)
                seconds = time.monotonic() - started
                self.clock.stepped(seconds)
                if self.early is not None:
                    self.early.after_step(losses)
                smooth = {name: 0.95 * smooth.get(name, loss) + 0.05 * loss for name, loss in losses.items()}
                step, records = learner.step_number, self.observer.records
                records.log("losses", {"step": step, **losses, **learner.facts}, step)
                speed = {"seconds": round(seconds, 4), "peak GiB": round(peak_gib(self.base.device), 3)}
                records.log("speed", {"step": step, **speed}, step)
                bar.update()
                left = duration(self.clock.left(learner.step_number, learner.round_number + 1) or 0.0)
                bar.set_postfix({**{name: f"{loss:.4f}" for name, loss in smooth.items()}, "left in all": left})
                self._export_if_due(learner, pool)
                due = config.checkpoint_every and learner.step_number % config.checkpoint_every == 0
                if due and learner.step_number < until:
                    self._save(learner)

    def _export_if_due(self, learner: Learner, pool: Pool) -> None:
        """Keep the adapter as it is at this step. A run that goes on from an earlier one writes it again, the same."""
        every, step = self.config.export_every, learner.step_number
        if not every or step % every:
            return
        pictures = self._sampled(learner) if self.config.online else len(pool)
        with averaged(learner):
            adapter = make_adapter(learner, self.base_identity, pool.r.mean().item(), pictures)
        if processes.rank() == 0:
            write_adapter(self.out / EXPORTS / f"step-{step:06d}", adapter)

    def _resume(self, learner: Learner) -> None:
        if state := load_checkpoint(self.path, self.config.to_dict(), self.say):
            learner.load_state_dict(state["learner"])
            if self.early is not None and "early" in state:
                self.early.load_state_dict(state["early"])
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
        early = {} if self.early is None else {"early": self.early.state_dict()}
        return {"settings": self.config.to_dict(), "learner": learner.state_dict(), "seconds": seconds, **early}


class _StoppedInPool(Exception):
    """The run was asked to stop while the first process made the pool; all of them end behind it."""


def silent(line: str) -> None:
    """Say nothing."""
