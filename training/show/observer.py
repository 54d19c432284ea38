"""What a run shows of itself: its records, sample grids while it goes, sweeps on held-out prompts, and a report.

An observer looks at the learner and changes nothing in it (live.py). What it shows depends on the step alone, so a run
that was stopped makes what is missing when it goes on.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from nft_pipeline.adapter import AdapterConfig, BaseModel
from nft_pipeline.dial.promise import promise
from nft_pipeline.files.atomic import atomic_write_bytes
from nft_pipeline.grid import labelled_grid, scale_for
from nft_pipeline.hub_cards.draw import sample_files
from nft_pipeline.hub_cards.report import REPORT_FILE, RunReport, Sample

from ..bases.base import TrainBase, rows_of
from ..data.folder import read_folder
from ..data.scorers import RunRewards
from ..devices import processes
from ..dial.budget import calibration_pictures
from ..dial.calibrate import LEAST, Calibrated, Settings, calibrate
from ..dial.draws import Draws
from ..dial.draws import Interrupted as DrawsInterrupted
from ..dial.judges import AlphaJudge, RewardJudge
from ..learn.calibration import Calibration
from ..learn.export import Shift, adapter_config
from ..learn.learner import Learner
from ..rewards.find import find_prompts
from ..settings.config import TrainConfig
from ..settings.data import DataSettings
from ..settings.public import public_settings
from .dial_words import DialWords, dial_words
from .doubts import Doubts
from .live import LIVE, Interrupted, Live
from .page import write_page
from .records import TABLES, Records
from .run_report import run_report, trained_facts
from .sweep import GROUP, Sweep, measure_sweep, sweep_rows
from .watch import Choice, choose_strength, hacking_verdict, is_trusted

Say = Callable[[str], None]
GRID_STRENGTHS = (0.0, 0.5, 1.0, 2.0)
GRID_PROMPTS = 4
DIAL_PROMPTS = 160  # at most, to calibrate the dial on
PROMISED_STRENGTHS = (-1.0, 0.5, 1.0, 2.0)
_GRID = re.compile(r"step-(\d{6,})\.png")


@dataclass(frozen=True)
class Findings:
    """What a finished run found: the files to put beside its adapter, the strength to recommend, and the shift of
    log-odds at strength 1, None where no sweep measured one."""

    files: dict[str, bytes]
    report: RunReport
    strength: float
    shift: Shift | None = None


class Observer:
    """Watches one run.

    Args:
        config: the run's settings.
        base: the base model with its text encoders; all prompts that will be drawn are encoded here.
        base_identity: the base model as the adapter's config names it.
        out: the run's folder.
        rewards: the run's.
        say: called with one line per finding.
        stop: returns whether the run was asked to stop; drawing then ends early.
    """

    def __init__(
        self,
        config: TrainConfig,
        base: TrainBase,
        base_identity: BaseModel,
        out: Path,
        rewards: RunRewards,
        say: Say = print,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config, self.base, self.out, self.say = config, base, out, say
        self._rewards = rewards
        self._works = processes.rank() == 0
        self._records: Records | None = None
        self.sweep: Sweep | None = None  # the last one
        self.calibrated: Calibrated | None = None
        self._dialled: AdapterConfig | None = None  # with what the calibration found
        self.base_identity = base_identity
        self._card: tuple[dict[str, bytes], list[Sample]] = ({}, [])
        if self.draws:
            known, words = held_out(config)
            held = _spread(known, max(1, config.sweep_size // GROUP)) if config.sweep_size else []
            shown = (config.sample_prompts or _spread(known, GRID_PROMPTS)) if config.samples_every else []
            self._words = words.format(len(set(held)))
            self._held, self._shown = len(held), range(len(held), len(held) + len(shown))
            tried = _some(known, DIAL_PROMPTS) if self._calibrates else []
            self._tried = range(len(held) + len(shown), len(held) + len(shown) + len(tried))
            self.live = Live(base, base_identity, [*held, *shown, *tried], config.pool_batch, stop, config.sweep_steps)

    @property
    def draws(self) -> bool:
        """Whether pictures are wanted; the VAE then has to stay in memory."""
        return self._works and bool(self.config.samples_every or self.config.sweep_size or self._calibrates)

    @property
    def _calibrates(self) -> bool:
        return calibration_pictures(self.config) >= LEAST

    @property
    def records(self) -> Records:
        """Where the run's numbers are written; open from `begin` on."""
        assert self._records is not None, "begin() comes first"
        return self._records

    def begin(self, learner: Learner) -> None:
        """The run starts, or goes on, from the learner's step. Records of later steps are dropped, to be made again.

        Raises:
            TrackerError: a package for a tracker is missing.
        """
        step = learner.step_number
        if self._works:
            settings = yaml.safe_dump(public_settings(self.config.to_dict()), sort_keys=False, allow_unicode=True)
            atomic_write_bytes(self.out / "settings.yaml", settings.encode())
            for number, path in self.grids().items():
                if number > step or step == 0:
                    path.unlink()
        self._records = Records(self.out, self.config, step, writes=self._works)
        for table in ("losses", "speed"):
            self._records.forget_after(table, step)
        self._records.forget_after("sweeps", step if step else -1)

    def grids(self) -> dict[int, Path]:
        """The sample grids there are, by step."""
        found = ((_GRID.fullmatch(path.name), path) for path in (self.out / "samples").glob("*.png"))
        return {int(match[1]): path for match, path in found if match is not None}

    def grid(self, learner: Learner) -> None:
        """Draw the sample grid if one is due at this step and not there yet."""
        step, every = learner.step_number, self.config.samples_every
        due = every and (step % every == 0 or step == self.config.total_steps)
        path = self.out / "samples" / f"step-{step:06d}.png"
        if not (self.draws and due) or path.exists():
            return
        try:
            columns = self._samples(learner, GRID_STRENGTHS, "samples")
        except Interrupted:
            return
        picture = labelled_grid(
            list(zip(*columns, strict=True)),
            [self.live.texts[row] for row in self._shown],
            [f"strength {strength:g}" for strength in GRID_STRENGTHS],
            scale=scale_for(columns[0][0].width),
            title=f"{self.config.name}, step {step}",
        )
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        atomic_write_bytes(path, buffer.getvalue())
        self.records.picture("samples", picture, step)

    def look(self, learner: Learner, again: bool = False) -> Sweep | None:
        """Sweep over the held-out prompts; `record` writes it down.

        Args:
            again: also if the records have a whole sweep of this step.

        Returns:
            The sweep; None if none is wanted, or the run was asked to stop.
        """
        config, step = self.config, learner.step_number
        if not (self._works and config.sweep_size):
            return None
        lines = sum(row["step"] == step for row in self.records.rows("sweeps"))
        if not again and lines >= len(config.sweep_strengths):  # a kill may have left some of them
            return None
        watched = next(iter(self._rewards.watched().items()), None)
        rows = sweep_rows(self._held, config.sweep_size)
        try:
            with self.live.of(learner) as draw:
                sweep = measure_sweep(
                    draw,
                    self.live.texts,
                    rows,
                    config.sweep_strengths,
                    self._rewards.trained(),
                    config.public_weights,
                    watched,
                    self._words,
                    self._rewards.others(),
                )
        except Interrupted:
            return None
        self.sweep = sweep
        return sweep

    def record(self, sweep: Sweep, step: int) -> None:
        """Say and write down what a sweep at a step found. A run that goes on takes it for done from then on."""
        verdict = hacking_verdict(sweep)
        self.records.forget_after("sweeps", step - 1)
        for point, line in zip(sweep.points, sweep.lines(), strict=True):
            said = {} if verdict is None else {"trusted": is_trusted(sweep, point), "verdict": verdict.verdict}
            self.records.log("sweeps", {"step": step, **line, **said}, step)
        if sweep.goal is not None and verdict is not None:
            values = ", ".join(f"{p.values[sweep.goal].mean:.3f} at {p.strength:g}" for p in sweep.points)
            self.say(f"held out, step {step}: {sweep.goal} {values}")
            warning = "" if verdict.verdict == "none seen" else "warning: "
            self.say(f"{warning}reward hacking: {verdict.verdict}; {verdict.reason}")

    def calibrate(self, learner: Learner) -> Calibrated | None:
        """Find out what each setting of the dial does; from then on everything is drawn by what was found.

        Returns:
            What was found; None if it is not wanted, the run is too small for it, or it was asked to stop.
        """
        config, pictures = self.config, calibration_pictures(self.config)
        if not self._works or (not config.calibration_pictures and config.calibration_pictures is not None):
            return None
        if pictures < LEAST:
            words = "are a tenth of this run" if config.calibration_pictures is None else "were asked for"
            self.say(f"the dial is not calibrated: {pictures} pictures {words}, {LEAST} are needed")
            return None
        rewards, live = self._rewards.trained(), self.live
        if not rewards and config.kind != "positive":  # only positive adapters have a head
            self.say(
                "the dial is not calibrated: nothing can judge new pictures. To rate some yourself, run "
                "diffusion-nft calibrate with --by-hand"
            )
            return None
        judged_by = "reward" if rewards else "alpha"
        judge_name = config.reward_name if rewards else "the alpha head, at low noise"
        self.say(f"calibrating the dial: {pictures} held-out pictures, judged by {judge_name}")
        texts = [live.texts[row] for row in self._tried]
        conditions = rows_of(live.conditions, list(self._tried))
        with live.guided(learner):
            draws = Draws(self.base, LIVE, texts, conditions, live.empty, config.pool_batch, live.stop)
            judge = (
                RewardJudge(texts, rewards, config.public_weights, config.optimality, config.optimality_at, config.mix)
                if rewards
                else AlphaJudge(draws)
            )
            watched = self._rewards.watched(own_scale=False)
            watch = RewardJudge(texts, watched, {}) if watched else None
            settings = Settings(pictures, judged_by, judge_name[:200], seed=config.seed)
            try:
                result = calibrate(draws, judge, settings, watch)
            except DrawsInterrupted:
                return None
        self.calibrated, live.dial = result, result.dial
        self.say(f"dial: {result.reason}")
        self._dialled = adapter_config(learner, self.base_identity, learner.mean_r, 0, dial=result.dial)
        for strength in PROMISED_STRENGTHS if result.learned else ():
            self.say(f"strength {strength:g}: {promise(self._dialled, strength)}")
        return result

    def is_best(self, sweep: Sweep, step: int) -> bool:
        """Whether no sweep before this step that trusts strength 1 has a higher held-out reward there than this one."""
        point = next((point for point in sweep.points if point.strength == 1), None)
        if sweep.goal is None or point is None or not is_trusted(sweep, point):
            return False
        earlier = [row for row in self.records.rows("sweeps") if row["step"] < step]
        rows = [row for row in earlier if row["strength"] == 1 and row.get("trusted")]
        return point.values[sweep.goal].mean >= max((row.get(sweep.goal, -np.inf) for row in rows), default=-np.inf)

    def has_seen_hacking(self, step: int) -> bool:
        """Whether the sweep of this step says "seen"."""
        return self._works and any(
            row["step"] == step and row.get("verdict") == "seen" for row in self.records.rows("sweeps")
        )

    def draw_for_card(self, learner: Learner) -> None:
        """Draw the pictures that go with the adapter, unless the run was asked to stop."""
        if self.draws and self.config.samples_every:
            strengths = self.config.sweep_strengths
            with suppress(Interrupted):
                columns = self._samples(learner, strengths, "pictures for the card")
                rows = [(self.live.texts[row], 0) for row in self._shown]
                self._card = sample_files(rows, strengths, columns)

    def finish(
        self,
        pictures: int,
        seconds: float,
        calibration: Sequence[Calibration],
        steps: int,
        doubts: Doubts = Doubts(),  # noqa: B008  it is frozen
    ) -> Findings:
        """The report of a run that is done, and its page in the run's folder.

        Args:
            pictures: how many pictures the run learned from.
            seconds: how long it took.
            calibration: how well its head does on held-out pictures.
            steps: optimiser steps that it made.
            doubts: what speaks against the adapter.
        """
        config = self.config
        files, samples = dict(self._card[0]), self._card[1]
        facts = trained_facts(config, pictures, seconds, self.base.device, steps)
        report = run_report(config, facts, calibration, self.sweep, samples)
        for words in doubts.words:
            self.say(f"warning: {words}")
        choice = self._choice(doubts)
        if choice is not None:
            what = f"recommended strength {choice.strength:g}" if choice.recommended else "no strength is recommended"
            self.say(f"{what}: {choice.reason}")
        files[REPORT_FILE] = report.to_json().encode()
        if self._works:
            rows = {table: self.records.rows(table) for table in TABLES}
            page = write_page(
                self.out,
                config,
                report,
                rows,
                choice=choice,
                doubts=doubts.words,
                sweep=self.sweep,
                calibration=calibration,
                grids=self.grids(),
                dial=self._dial_words(),
            )
            self.say(f"report written to {page}")
        strength = 1.0 if choice is None else choice.strength
        return Findings(files, report, strength, None if self.sweep is None else self.sweep.shift)

    def _choice(self, doubts: Doubts) -> Choice | None:
        """The strength to store; None where nothing was measured."""
        choice, calibrated = None if self.sweep is None else choose_strength(self.sweep), self.calibrated
        strength = 1.0 if choice is None else choice.strength
        if calibrated is not None and not calibrated.learned:
            more = f". Not learnable from these: about {doubts.more} more ratings may do" if doubts.more else ""
            return Choice(strength, None, calibrated.reason + more, False)
        # Alpha cannot vouch for itself: where it is the only judge, it has to know pictures that it has not seen.
        if doubts.at_chance and not self.config.weights:
            return Choice(strength, None, f"not learnable from these ratings: about {doubts.more} more may do", False)
        if calibrated is not None and (choice is None or self.sweep is None or self.sweep.goal is None):
            return Choice(strength, None, f"the dial holds there, as judged by {calibrated.dial.judge}")
        return choice

    def _dial_words(self) -> DialWords | None:
        if self.calibrated is None or self._dialled is None:
            return None
        return dial_words(self._dialled, self.calibrated)

    def close(self) -> None:
        """Write what is left and close the records."""
        if self._records is not None:
            self._records.close()

    def _samples(self, learner: Learner, strengths: Sequence[float], label: str) -> list[list[Image.Image]]:
        """columns[strength][prompt], each prompt from seed 0."""
        rows = [(row, 0) for row in self._shown]
        with self.live.of(learner) as draw:
            return [[Image.fromarray(picture) for picture in draw(rows, s, label)] for s in strengths]


def held_out(config: DataSettings) -> tuple[list[str], str]:
    """The prompts to look at, the held-out ones or the run's own if there are none, and words for some of them, with
    {} where their number goes."""
    if config.held_out_prompts is not None:
        return find_prompts(config.held_out_prompts), "{} held-out prompts"
    if config.prompts is not None:
        prompts = find_prompts(config.prompts)
    else:
        assert config.data is not None
        prompts = sorted({picture.prompt for picture in read_folder(config.data).pictures})
    return prompts, "{} prompts it was trained on, with noise it was not"


def _some(prompts: Sequence[str], count: int) -> list[str]:
    """At most `count`, by chance but always the same: a list may take its kinds in turn, and even steps miss some."""
    places = np.random.default_rng(0).permutation(len(prompts))[:count]
    return [prompts[place] for place in sorted(places.tolist())]


def _spread(prompts: Sequence[str], count: int) -> list[str]:
    """At most `count`, evenly from all."""
    places = np.linspace(0, len(prompts) - 1, min(count, len(prompts))).round().astype(int)
    return [prompts[place] for place in places]
