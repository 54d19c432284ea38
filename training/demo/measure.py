"""Measuring guidance on a shipped model: how often o = 1, how good the pictures are, and what was promised.

Every way of steering is a list of `Point`s on the same prompts and the same noise, so that rows differ by the steering
alone: both guidance laws, and the rival, plain LoRA weight strength.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nft_pipeline.dial.promise import mean_promise, promise

from ..bases.registry import train_base
from ..dial.curve import rate_between_prompts
from ..rewards.find import Scorer
from ..shapes.score import judge
from ..shapes.world import Prompt

CALIBRATED = "calibrated"
Quality = Callable[[np.ndarray, Sequence[str]], float]  # of pictures, uint8 (n, H, W, 3), and their prompts


def template_overlap(pictures: np.ndarray, texts: Sequence[str]) -> float:
    """The mean overlap of what is drawn with the shapes model's templates, in [0, 1]; the prompts do not matter."""
    return float(np.mean([judge(picture, Prompt()).quality for picture in pictures]))


@dataclass(frozen=True)
class Point:
    """One setting of one way of steering.

    Args:
        method: "base", a law's name, `CALIBRATED` for the adapter's own way, or "lora weight".
        setting: tilt for the laws, weight for the LoRA; 0 for the base.
        n: number of pictures.
        rate: share of pictures with o = 1.
        quality: of the pictures, in [0, 1]; the workload says what that is.
        promise: what is promised for this tilt, for each prompt by docs/theory.md, M10, and then averaged (M11), for a
            calibrated adapter up to what it reaches; None for the rivals, which promise nothing.
        spread: of the base, how far the prompts' rates differ: their standard deviation, without what chance adds.
    """

    method: str
    setting: float
    n: int
    rate: float
    quality: float
    promise: float | None = None
    spread: float = 0.0

    @property
    def error(self) -> float:
        """Standard error of `rate`."""
        return math.sqrt(max(self.rate * (1 - self.rate), 0.25 / self.n) / self.n)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for a table or a file."""
        return asdict(self)


@dataclass(frozen=True)
class Workload:
    """What is sampled: `n` pictures of these prompts in turn, with this noise.

    Args:
        prompts: the prompts; picture i is drawn from prompt i mod len(prompts).
        n: number of pictures.
        seed: the seed of the noise.
        batch: pictures per call.
        call: further arguments of the pipeline's call, such as num_inference_steps.
        dtype: bf16 samples under autocast.
        quality: what counts as a picture's quality.
    """

    prompts: Sequence[str]
    n: int
    seed: int
    batch: int
    call: dict[str, Any]
    dtype: torch.dtype = torch.float32
    quality: Quality = template_overlap

    def texts(self) -> list[str]:
        """The prompt of each of the n pictures: all prompts in turn, from the first again when they are used up."""
        return [self.prompts[i % len(self.prompts)] for i in range(self.n)]

    def pictures(self, pipe: Any, label: str = "", **steering: Any) -> np.ndarray:
        """Pictures of `pipe`, uint8 (n, H, W, 3), steered by further arguments of its call."""
        call = {**self.call, **steering}
        base = train_base(pipe, call, self.dtype)
        latents = base.sample(
            base.encode_prompts(self.prompts),
            torch.arange(self.n) % len(self.prompts),
            seed=self.seed,
            batch=self.batch,
            label=label,
            empty=base.encode_empty(),
        )
        return base.decode_latents(latents)


def measure_pictures(
    pictures: np.ndarray, texts: Sequence[str], reward: Scorer, quality: Quality = template_overlap
) -> tuple[float, float]:
    """(rate of o = 1, quality)."""
    return float(np.mean(reward(pictures, texts) > 0.5)), quality(pictures, texts)


def _measured(work: Workload, pictures: np.ndarray, reward: Scorer) -> tuple[float, float]:
    return measure_pictures(pictures, work.texts(), reward, work.quality)


def measure_base(pipe: Any, work: Workload, reward: Scorer) -> Point:
    """The base model on its own."""
    pictures, texts = work.pictures(pipe, "base"), work.texts()
    liked = np.asarray(reward(pictures, texts) > 0.5, dtype=np.float64)
    rate, _, spread = rate_between_prompts(liked, np.array(texts))
    return Point("base", 0.0, work.n, rate, work.quality(pictures, texts), rate, spread)


def measure_laws(
    guided: Any,
    work: Workload,
    reward: Scorer,
    base: Point,
    tilts: Iterable[float],
    laws: Sequence[str],
    mode: str = "two_pass",
) -> list[Point]:
    """The laws at each tilt; tilt 0 is the base model and is not sampled again.

    What is promised is for the base's rate here. How far prompts differ is what the adapter's calibration measured,
    which is more than the pictures of one workload can say; without one it is the base's spread here.

    Args:
        laws: names of laws, and `CALIBRATED` for an adapter that is: its own mode and map.
        mode: the call's nft_mode, for the laws.
    """
    points, dial = [], guided.nft_config.dial
    spread = base.spread if dial is None else dial.spread
    for law in laws:
        for tilt in tilts:
            strength = tilt / guided.nft_config.tilt
            if law == CALIBRATED:
                expected = promise(guided.nft_config, strength, rate=base.rate, spread=spread).rate
                steering: dict[str, Any] = {"nft_strength": strength}
            else:
                expected = mean_promise(base.rate, spread, tilt)
                steering = {"nft_strength": strength, "nft_law": law, "nft_mode": mode}
            if tilt == 0:
                points.append(Point(law, 0.0, base.n, base.rate, base.quality, expected, base.spread))
                continue
            pictures = work.pictures(guided, f"{law} {tilt:+g}", **steering)
            points.append(Point(law, tilt, work.n, *_measured(work, pictures, reward), expected))
    return points


def measure_rates(guided: Any, work: Workload, reward: Scorer, rates: Iterable[float]) -> list[Point]:
    """A calibrated adapter asked for shares of liked pictures by nft_rate; the setting is what was asked for."""
    points = []
    for rate in rates:
        pictures = work.pictures(guided, f"rate {rate:g}", nft_rate=rate)
        points.append(Point(CALIBRATED, rate, work.n, *_measured(work, pictures, reward), rate))
    return points


@contextmanager
def with_lora(stock: Any, folder: Path) -> Iterator[str]:
    """The stock pipeline with the adapter's LoRA loaded by diffusers' own loader; yields its name."""
    stock.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors", adapter_name="rival")
    try:
        yield "rival"
    finally:
        stock.unload_lora_weights()


def measure_lora_weight(
    stock: Any, folder: Path, work: Workload, reward: Scorer, base: Point, weights: Iterable[float]
) -> list[Point]:
    """The rival: the same LoRA in one pass, its weights scaled. Weight 0 is the base, not sampled again."""
    points = [Point("lora weight", 0.0, base.n, base.rate, base.quality)]
    with with_lora(stock, folder) as name:
        for weight in weights:
            stock.set_adapters(name, weight)
            pictures = work.pictures(stock, f"lora weight {weight:g}")
            points.append(Point("lora weight", weight, work.n, *_measured(work, pictures, reward)))
    return points


def matched_quality(rivals: Sequence[Point], rate: float) -> float | None:
    """The rivals' quality at this rate, interpolated between their two nearest settings; None if none reaches it."""
    ordered = sorted(rivals, key=lambda point: point.setting)
    for low, high in itertools.pairwise(ordered):
        if min(low.rate, high.rate) <= rate <= max(low.rate, high.rate) and low.rate != high.rate:
            part = (rate - low.rate) / (high.rate - low.rate)
            return low.quality + part * (high.quality - low.quality)
    return None
