"""Pictures of the adapter as it would be exported now, at any strength, while it trains.

The guided pipeline itself draws them; the learner's LoRA is on its denoiser already. Afterwards weights, switches and
random numbers are what they were before, so that a run that looks at itself learns the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import Adapter, BaseModel
from nft_pipeline.dial.measured import Dial
from nft_pipeline.engine.loading import LoadedAdapter

from ..bases.base import TrainBase, rows_of
from ..learn.export import adapter_config
from ..learn.learner import Learner
from ..learn.roles import THETA

LIVE = "live"
Draw = Callable[[Sequence[tuple[int, int]], float, str], np.ndarray]


class Interrupted(RuntimeError):
    """The run was asked to stop while it drew."""


class Live:
    """Draws with the learner's running averages.

    Args:
        base: the base model with its text encoders, which may be released afterwards.
        base_identity: the base model as the adapter's config names it.
        texts: the prompts that will be drawn.
        batch: pictures drawn at once.
        stop: asked between batches whether the run is to stop.
        steps: denoising steps; None for those of the base's call.
    """

    def __init__(
        self,
        base: TrainBase,
        base_identity: BaseModel,
        texts: Sequence[str],
        batch: int,
        stop: Callable[[], bool] = lambda: False,
        steps: int | None = None,
    ) -> None:
        self.base, self.base_identity = base, base_identity
        self.texts, self.batch = list(texts), batch
        self.stop, self.steps = stop, steps
        self.conditions = base.encode_prompts(self.texts)
        self.empty = base.encode_empty()
        self.dial: Dial | None = None  # what a calibration found; pictures are drawn by it from then on

    @contextmanager
    def of(self, learner: Learner) -> Iterator[Draw]:
        """Within, a function that draws: draw(rows, strength, label) -> uint8 (N, H, W, 3).

        rows: (prompt, seed) of each picture; the prompt is a place in `texts`, and the starting noise is the one that
        `torch.Generator().manual_seed(seed)` gives a call of the pipeline. strength: 0 is the base model. label: the
        text of the progress bar. It raises Interrupted if the run was asked to stop.
        """

        def draw(rows: Sequence[tuple[int, int]], strength: float, label: str) -> np.ndarray:
            self.base.call["nft_strength"] = float(strength)
            if self.steps is not None:
                self.base.call["num_inference_steps"] = self.steps
            prompt = torch.tensor([prompt for prompt, _ in rows])
            one = self.base.latent_shape(1)
            noise = torch.cat([torch.randn(one, generator=torch.Generator().manual_seed(seed)) for _, seed in rows])

            def one_part(part: Tensor) -> np.ndarray:
                if self.stop():
                    raise Interrupted(f"{label} was interrupted")
                return self._batch(prompt[part], noise[part])

            pictures = []
            with tqdm(total=len(rows), desc=f"{label}, strength {strength:g}", unit="picture", leave=False) as bar:
                for part, drawn in self.base.fits.parts("drawing", torch.arange(len(rows)), self.batch, one_part):
                    pictures.append(drawn)
                    bar.update(len(part))
            return np.concatenate(pictures)

        with self.guided(learner):
            yield draw

    def _batch(self, prompt: Tensor, noise: Tensor) -> np.ndarray:
        latents = self.base.sample_batch(rows_of(self.conditions, prompt), noise, self.empty)
        return self.base.decode_latents(latents)

    @contextmanager
    def guided(self, learner: Learner) -> Iterator[None]:
        """Within, the base's pipeline is guided by the learner's running averages, as its adapter `LIVE`."""
        pipe, call = self.base.pipe, self.base.call
        config = adapter_config(learner, self.base_identity, learner.mean_r, 0, dial=self.dial)
        adapter = Adapter(config, learner.roles.lora(), learner.head if config.kind == "positive" else None)
        guided = DiffusionNFTPipeline.from_pipe(pipe)
        # As after load_nft_adapter, but for the LoRA, which is on the denoiser.
        guided._nft_loaded[LIVE] = LoadedAdapter(adapter, {config.component: THETA}, {})
        learner.roles.use("base")
        self.base.pipe, self.base.call = guided, dict(call)
        try:
            devices = [self.base.device] if self.base.device.type == "cuda" else []
            with averaged(learner), torch.random.fork_rng(devices):
                yield
        finally:
            self.base.pipe, self.base.call = pipe, call


@contextmanager
def averaged(learner: Learner) -> Iterator[None]:
    """Within this context the learner's running averages are in the place of its weights."""
    trained = [parameter.detach().clone() for parameter in learner.parameters]
    learner.use_average()
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(learner.parameters, trained, strict=True):
                parameter.copy_(value)
