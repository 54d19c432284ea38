"""SMC on a diffusers pipeline: a prompt's particles are one batch, and the scheduler's step moves and redraws them.

Between the denoiser and the next step stands `scheduler.step`, which has the state, the prediction after
classifier-free guidance, and the noise levels. While the call runs, a step of ours stands in for it
(`nft_pipeline.search.smc`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ..checks import is_number, is_whole
from ..dial.tilts import Tilt, for_pictures, tilts_of
from ..engine.stats import StatsRecorder
from ..engine.trace import Trace
from ..errors import GuidanceError
from ..search.choice import SEEDS, draw_seeds, judges
from ..search.smc import Particles, log_twist, renoised
from ..settings import GuidanceSettings
from .guided_call import run_recorded
from .running import RunningCall

_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
_EACH = "num_images_per_prompt"


@dataclass(frozen=True)
class Drawn:
    """What `draw_particles` gives.

    Args:
        output: the stock call's output; picture g * particles + i is particle i of prompt g.
        ancestors: which of the noises that a prompt began with each picture comes from, int64, (prompts, particles).
    """

    output: Any
    ancestors: Tensor

    @property
    def survivors(self) -> list[int]:
        """Per prompt, how many noises have descendants among its pictures: the fewer, the more alike they are."""
        return [row.unique().numel() for row in self.ancestors]


def draw_particles(
    pipe: Any,
    prompt: str | Sequence[str],
    *,
    particles: int = 16,
    eta: float = 0.6,
    strength: Any = None,
    beta: Any = None,
    **call: Any,
) -> Drawn:
    """Pictures of the odds law by sequential Monte Carlo: one pass of the base model per step, no LoRA.

    The pictures of a prompt are drawn together and share its luck: where alpha says that some will be liked and others
    not, the former take the places of the latter. Several adapters make the product of their laws.

    Args:
        pipe: a guided pipeline whose adapters at work have alpha heads, over a flow-matching model.
        prompt: one or more.
        particles: pictures per prompt, at least 2; below 8 or so the law is only roughly kept.
        eta: the share of fresh noise in a step, above 0 and at most 1. Without it copies would stay copies.
        strength, beta: as nft_strength and nft_beta of the call; default strength 1. A list has one number for each
            prompt: the pictures of a prompt share one law.
        call: further arguments of the stock call.

    Raises:
        GuidanceError: a value out of range, no head, or a pipeline or scheduler that this cannot be done with.
    """
    if not is_whole(particles) or particles < 2:
        raise GuidanceError(f"particles is {particles!r}, expected a whole number of at least 2.")
    if not is_number(eta) or not 0 < eta <= 1:
        raise GuidanceError(f"eta is {eta!r}, expected a number above 0 and at most 1.")
    loaded = pipe._nft_loaded
    configs = {name: entry.adapter.config for name, entry in loaded.items()}
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    tilts = _of_particles(tilts_of(configs, strength, beta), len(prompts), particles)
    asked = judges(tilts, [name for name, entry in loaded.items() if entry.adapter.head is not None])
    _check(pipe, call)
    given = call.get("generator")
    seed = draw_seeds(given[0] if isinstance(given, Sequence) else given, 1, 1)
    fresh = Generator().manual_seed((int(seed) + 1) % SEEDS)
    flock = Particles(len(prompts), particles, fresh)
    trace = Trace(StatsRecorder(list(loaded)), watch=True)
    arguments = {**pipe.call_defaults, **call, "prompt": prompts, _EACH: particles}
    settings = GuidanceSettings.of_call(list(configs.values()))
    running = RunningCall(configs, dict.fromkeys(tilts, 0.0), settings, dict.fromkeys(tilts, settings), None, trace)
    with _stepping(pipe.scheduler, flock, trace, [(name, tilts[name]) for name in asked], eta, fresh):
        output = run_recorded(pipe, loaded, running, (), arguments)
    return Drawn(output, flock.ancestors)


def _of_particles(tilts: Mapping[str, Tilt], prompts: int, particles: int) -> dict[str, Tilt]:
    """The tilts with one number for each picture where there was one for each prompt.

    Raises:
        GuidanceError: there are as many numbers as something else than prompts.
    """
    for name, tilt in tilts.items():
        if isinstance(tilt, tuple) and len(tilt) != prompts:
            raise GuidanceError(
                f"there are {len(tilt)} strengths for the adapter {name!r} and {prompts} prompts. The pictures of a "
                "prompt share one law, so give one strength for each prompt, or one for all. For several strengths of "
                "one prompt give the prompt as often."
            )
    return for_pictures(tilts, prompts, particles)


def _check(pipe: Any, call: dict[str, Any]) -> None:
    """Raise GuidanceError if particles cannot be moved in this pipeline's call."""
    scheduler = pipe.scheduler
    flags = [flag for flag in ("stochastic_sampling", "invert_sigmas") if getattr(scheduler.config, flag, False)]
    if type(scheduler).__name__ != _SCHEDULER or flags:
        raise GuidanceError(
            f"particles need the steps of a {_SCHEDULER}, and this pipeline has a {type(scheduler).__name__}"
            f"{' with ' + ', '.join(flags) if flags else ''}. Use a flow-matching model with that scheduler, or early "
            "choice (nft_candidates), which works with any."
        )
    if _EACH not in inspect.signature(pipe._nft_stock_class.__call__).parameters or _EACH in call:
        raise GuidanceError(
            f"the particles of a prompt are its {_EACH}, which the pipeline's call must take and you must not give. "
            "Give particles=..., or use early choice (nft_candidates)."
        )


@contextmanager
def _stepping(
    scheduler: Any, flock: Particles, trace: Trace, asked: Sequence[tuple[str, Tilt]], eta: float, fresh: Generator
) -> Iterator[None]:
    """Within it the scheduler's step weighs the particles, draws them anew where it is due, and adds fresh noise."""
    stock = scheduler.step

    def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = stock(model_output, timestep, sample, *args, **kwargs)  # counts the steps, and has the answer's form
        levels = scheduler.sigmas[scheduler.step_index - 1 : scheduler.step_index + 1].tolist()
        alphas = torch.stack([trace.alphas[name] for name, _ in asked])
        index = flock.weigh(log_twist(alphas, [tilt for _, tilt in asked]))
        if levels[1] == 0:
            index = index[flock.finish()]
        index = index.to(sample.device)
        x, v = sample[index].float(), model_output[index].float()
        noise = torch.randn(x.shape, generator=fresh).to(x.device)
        moved = renoised(x, v, levels[0], levels[1], eta, noise).to(sample.dtype)
        if isinstance(result, tuple):
            return (moved, *result[1:])
        return type(result)(prev_sample=moved)

    scheduler.step = step
    try:
        yield
    finally:
        del scheduler.step
