"""A training run from settings to adapter: pictures -> scores -> objective -> checkpoint -> adapter.

The same call resumes: a pool and a checkpoint found in the run's folder are used if they belong to the same settings.
A damaged checkpoint gives way to the one before, and a damaged pool is made again.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from nft_pipeline.adapter import Adapter, read_adapter, write_adapter
from nft_pipeline.hub_cards.report import REPORT_FILE, RunReport

from ..data.pool import Pool
from ..data.settled import longer, settled
from ..devices import processes
from ..learn.calibration import Calibration, calibrate, calibrate_all, calibration_table
from ..learn.export import make_adapter, tilt_words
from ..learn.learner import Learner
from ..settings.config import TrainConfig
from ..show.doubts import Doubts, doubts
from .checkpoint import by_step
from .kinds import Run, Say, silent
from .load import base_identity, load_base, unshareable
from .run_folder import ADAPTER, card_files, check_one_folder, go_on_from_finished, is_finished, mark_finished, only_run
from .sharding import Sharding, check_sharding
from .stopping import Stopper


@dataclass(frozen=True)
class TrainResult:
    """What a run made: the adapter, where it is, how well alpha does on held-out samples, seconds by phase since it was
    started or went on, and the report beside the adapter."""

    adapter: Adapter
    folder: Path
    calibration: list[Calibration]
    seconds: dict[str, float]
    report: RunReport = field(default_factory=RunReport)


def train(config: TrainConfig, out: Path, *, say: Say = print, device: str = "auto", more: int = 0) -> TrainResult:
    """Run `config` and write `out/adapter`.

    Args:
        config: the run's settings.
        out: the run's folder; pools, checkpoint, records, sample grids, report.html and adapter go there.
        say: called with one line per phase.
        device: "auto" is CUDA if there is one, else the CPU.
        more: rounds, or steps of an offline run, beyond those of `config`. A run that is finished without them goes on.

    A run that is finished is not trained again: its adapter is read and returned, without calibration.

    Raises:
        Stopped: a signal asked for it; the same call goes on.
        ConfigError: or RewardError, OptimalityError, PoolError, DataError, CheckpointError, TrainingError,
            TrackerError, AdapterError; each is described where it is defined.
    """
    processes.start()
    config = longer(settled(config), more)
    check_sharding(config)
    if processes.rank() != 0:
        say = silent
    out.mkdir(parents=True, exist_ok=True)
    check_one_folder(out)
    with only_run(out) if processes.rank() == 0 else nullcontext():
        if more and processes.rank() == 0:
            go_on_from_finished(out, config)
        processes.wait()
        if is_finished(out, config):
            return _finished(config, out, say)
        return _train(config, out, say, device)


def _finished(config: TrainConfig, out: Path, say: Say) -> TrainResult:
    """What a finished run made; its adapter takes a `base_id` that was given since."""
    folder = out / ADAPTER
    adapter = read_adapter(folder)
    if config.base_id is not None and adapter.config.base_model.id != config.base_id and processes.rank() == 0:
        renamed = replace(adapter.config.base_model, id=config.base_id)
        adapter = replace(adapter, config=replace(adapter.config, base_model=renamed))
        write_adapter(folder, adapter, card_files(folder))
        say(f"the adapter in {folder} now says that it is for {config.base_id}")
    say(
        f"finished already: the adapter is in {folder}. To go on, give --more; to train it again, give another --out, "
        "or delete it"
    )
    report = folder / REPORT_FILE
    found = RunReport.from_json(report.read_bytes()) if report.is_file() else RunReport()
    return TrainResult(adapter, folder, [], {}, found)


def _train(config: TrainConfig, out: Path, say: Say, device: str) -> TrainResult:
    """Train, or go on, in a folder that is this process's alone."""
    base, reason = load_base(config, device)
    identity = base_identity(config, base)
    if note := unshareable(config):
        say(note)
    sharding = Sharding(base, say)
    with Stopper() as stopper:
        run = Run(config, out, base, identity, sharding, say, stopper)
        learner = None
        try:
            if config.online:
                learner, rate, pictures = run.online(reason)
                pool, held_out = None, None
            else:
                learner, pool, held_out = run.offline(reason)
                rate, pictures = pool.r.mean().item(), len(pool)
            run.keep(learner, rate, pictures)
            run.grid(learner)
            run.calibrate(learner)
            run.look_at_last(learner)
            learner.use_average()
            calibration = _calibration(learner, pool, held_out, say)
            seconds = run.seconds_before + sum(run.seconds.values())
            found_doubts = Doubts()
            if pool is not None and config.data is not None:
                found_doubts = doubts(pool.r, calibration, run.observer.records.rows("losses"))
            found = run.observer.finish(pictures, seconds, calibration, learner.step_number, found_doubts)
            dial = None if run.observer.calibrated is None else run.observer.calibrated.dial
            adapter = make_adapter(learner, identity, rate, pictures, calibration, found.strength, found.shift, dial)
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
        for path in (out / "round.safetensors", *kept):
            path.unlink(missing_ok=True)
    say(f"adapter written to {folder}")
    return TrainResult(adapter, folder, calibration, run.seconds, found.report)


def _calibration(learner: Learner, pool: Pool | None, held_out: Pool | None, say: Say) -> list[Calibration]:
    """How well alpha does on samples it has not seen: those held out, or each fold by the head that leaves it out."""
    if learner.head is None or (held_out is None and learner.folds is None):
        return []
    if held_out is not None:
        learner.head.eval()
        found, whose = calibrate(learner.alpha, held_out), "on held-out samples"
    else:
        assert pool is not None and learner.folds is not None
        folds = learner.folds
        heads = enumerate(head.eval() for head in folds.heads)
        parts = [(partial(learner.alpha, head=head), pool.rows(folds.fold == number)) for number, head in heads]
        found = calibrate_all([part for part in parts if len(part[1])])
        whose = f"cross-validated, by {len(folds.heads)} heads that each leave a part of the pictures out"
    say(f"alpha {whose}:\n" + calibration_table(found))
    return found
