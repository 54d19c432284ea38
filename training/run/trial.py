"""One of everything that a run does, at the run's own batches and timed: what `check` tries before a run starts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nft_pipeline.adapter import BaseModel, read_adapter, write_adapter

from ..bases.base import PROMPTS_AT_ONCE, TrainBase, rows_of
from ..data.folder import Folder, load_picture
from ..data.optimality import optimality
from ..data.pool import Pool, score
from ..data.scorers import RunRewards
from ..devices.memory import memory_advice, peak_within
from ..learn.calibration import calibrate
from ..learn.export import begin_from, make_adapter
from ..learn.learner import Learner
from ..settings.config import TrainConfig
from ..show.observer import Observer
from .hours import Pace, passes, timed, timed_drawing
from .load import base_identity

PICTURES = 8  # of a folder


class Trial:
    """Tries a run with these settings on this base model.

    Args:
        base: with text encoders.
        config: the run's settings.
        prompts: those that the run trains on.
        folder: its pictures, if it has a folder.

    Attributes:
        pace: what was timed.
        peaks: GiB of memory that each phase took at most, in the order in which they were tried; see `peak_within`.
    """

    def __init__(self, base: TrainBase, config: TrainConfig, prompts: Sequence[str], folder: Folder | None) -> None:
        self.base, self.config, self.folder, self.pace = base, config, folder, Pace()
        self.peaks: dict[str, float] = {}
        self.rewards = RunRewards(config, base.device)
        self.texts = sorted(set(prompts), key=len, reverse=True)[:PROMPTS_AT_ONCE]

    def pool(self) -> Pool:
        """One batch made as the run makes them. The scores are computed; how they become r is not tested."""
        base, config, texts, pace = self.base, self.config, self.texts, self.pace
        with self._phase("encoding prompts"):
            conditions, empty = base.encode_prompts(texts), base.encode_empty()
            pace.prompt = timed(lambda: base.encode_prompts(texts)) / len(texts)
        if self.folder is not None:
            pictures = self._of_folder(self.folder)
            with self._phase("encoding pictures"):
                pace.encode = timed(lambda: base.encode_pictures(pictures)) / len(pictures)
            rows = len(self.folder.pictures)
        else:
            rows = config.round_prompts * config.group_size if config.online else config.pool_size
        rows = min(config.pool_batch, rows)
        prompt = torch.arange(rows) % len(texts)
        noise = torch.randn(base.latent_shape(rows), generator=torch.Generator().manual_seed(config.seed))

        def draw(steps: int) -> torch.Tensor:
            with self._steps(steps):
                parts = base.fits.parts(
                    "drawing",
                    torch.arange(rows),
                    rows,
                    lambda part: base.sample_batch(rows_of(conditions, prompt[part]), noise[part], empty),
                )
                return torch.cat([latents for _, latents in parts])

        with self._phase("drawing"):
            latents = draw(min(2, config.pool_steps))
            pace.draw = timed_drawing(draw, rows)
        with self._phase("decoding"):
            decoded = base.decode_latents(latents)
            pace.decode = timed(lambda: base.decode_latents(latents)) / rows
        with self._phase("scoring"):
            self._score(decoded, prompt)
        return Pool.of(latents.half(), prompt, conditions, torch.linspace(0.1, 0.9, rows))

    def steps(self, pool: Pool) -> None:
        """An optimiser step, what shows and measures the adapter, and the adapter itself."""
        base, config = self.base, self.config
        identity = base_identity(config, base)
        learner = Learner(base, pool.conditions, replace(config, checkpoint_every=0))
        try:
            if config.init_from is not None:
                begin_from(learner, read_adapter(config.init_from))
            with self._phase("training"), memory_advice("training", micro_batch=config.micro_batch):
                self.pace.step = timed(lambda: learner.step(pool))
            if config.online:
                learner.finish_round()
            with self._phase("sweeps"), tempfile.TemporaryDirectory() as folder:
                self._show(learner, identity, Path(folder))
                write_adapter(Path(folder) / "adapter", make_adapter(learner, identity, 0.5, len(pool)))
            if config.kind == "positive":
                read = partial(calibrate, learner.alpha, pool, noise_levels=(0.5,), draws=1)
                with self._phase("reading alpha"):
                    self.pace.read = timed(read) / len(pool)
        finally:
            with suppress(Exception):
                learner.remove()

    def _show(self, learner: Learner, identity: BaseModel, out: Path) -> None:
        config, base = self.config, self.base
        rows = min(config.pool_batch, config.sweep_size)
        small: dict[str, Any] = {"sweep_size": rows, "samples_every": min(1, config.samples_every)}
        small |= {"sweep_strengths": [0.0, 1.0], "sweep_steps": None, "trackers": [], "keep_best": False}
        observer = Observer(replace(config, **small), base, identity, out, self.rewards, say=lambda line: None)
        try:
            observer.begin(learner)
            with self._steps(min(2, config.pool_steps)):
                observer.grid(learner)
                if sweep := observer.look(learner):
                    observer.record(sweep, learner.step_number)
            if observer.draws:
                places = [(place % len(observer.live.texts), place) for place in range(rows or 4)]

                def draw(steps: int) -> None:
                    with self._steps(steps), observer.live.of(learner) as one:
                        one(places, 1.0, "check")

                start, step = timed_drawing(draw, len(places))
                self.pace.show = start / passes(config, 1.0), step / passes(config, 1.0)
        finally:
            observer.close()

    def _of_folder(self, folder: Folder) -> np.ndarray:
        return np.stack([load_picture(picture.path, self.base.resolution) for picture in folder.pictures[:PICTURES]])

    def _score(self, pictures: np.ndarray, prompt: torch.Tensor) -> None:
        config, texts = self.config, [self.texts[place] for place in prompt.tolist()]
        rewards = self.rewards.trained()
        scores = {name: score(reward, name, pictures, texts) for name, reward in rewards.items()}
        if not scores:
            return
        groups = prompt.numpy() if config.online else None
        optimality(
            scores,
            config.optimality,
            weights=config.public_weights,
            groups=groups,
            at=config.optimality_at,
            mix=config.mix,
        )
        others = np.ascontiguousarray(pictures[:, :, ::-1])  # scores of the same pictures may be remembered
        again = timed(lambda: [score(reward, name, others, texts) for name, reward in rewards.items()])
        self.pace.score = again / len(pictures)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Within, the phase of this name is at work, and its memory is measured."""
        with peak_within(self.base.device) as found:
            yield
        if "GiB" in found:
            self.peaks[name] = found["GiB"]

    @contextmanager
    def _steps(self, count: int) -> Iterator[None]:
        """Within, a call of the pipeline takes so many denoising steps."""
        call = self.base.call
        steps, call["num_inference_steps"] = call["num_inference_steps"], count
        try:
            yield
        finally:
            call["num_inference_steps"] = steps
