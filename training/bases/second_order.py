"""The sampler of DiffusionNFT's authors, which they call dpm2: a second-order multistep solver, on any flow pipeline.

With x_0 = x - s v, the picture that the model predicts at noise level s, and l(s) = log((1 - s) / s), the step from s
to s' is that of DPM-Solver++ (arXiv:2211.01095) in its form 2M:

    x' = (s' / s) x + (1 - s') (1 - e^(l(s) - l(s'))) (x_0 + (x_0 - x_0 before) / 2 r)
    r = (l(s) - l(s before)) / (l(s') - l(s))

The first step and the last, which ends at 0, are Euler's. The noise levels are those of the pipeline's own scheduler.
The model is told whole timesteps, 1000 s without its fraction.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ..errors import TrainingError
from .base import Conditions, TrainBase


class SecondOrder(FlowMatchEulerDiscreteScheduler):
    """The solver, with the noise levels and the config of its base class."""

    timesteps: Tensor
    _x_0: Tensor  # the picture that the model predicted in the step before

    @wraps(FlowMatchEulerDiscreteScheduler.set_timesteps)  # pipelines look at its arguments' names
    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """As the base class, with whole timesteps."""
        super().set_timesteps(*args, **kwargs)
        self.timesteps = self.timesteps.floor()

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        """One step from `sample`, in a tuple; of the other arguments of the base class none is read."""
        if self.step_index is None:
            self._init_step_index(timestep)
        number = int(self.step_index or 0)
        v, x = model_output.float(), sample.float()
        x_0 = x - self.sigmas[number] * v
        levels = self.sigmas.double()
        s, following = levels[number], levels[number + 1]
        if number == 0 or following == 0:
            new = x + (following - s) * v
        else:
            before, now, then = (torch.log((1 - level) / level) for level in levels[number - 1 : number + 2])
            r = (now - before) / (then - now)
            ahead = x_0 + (x_0 - self._x_0) / (2 * r)
            new = (following / s) * x - (1 - following) * torch.expm1(now - then) * ahead
        self._x_0 = x_0
        self._step_index = number + 1
        return (new.to(model_output.dtype),)


@contextmanager
def second_order(base: TrainBase) -> Iterator[SecondOrder]:
    """Within it the base's pipeline samples by this solver.

    Raises:
        TrainingError: the pipeline's own scheduler has no flow-matching levels.
    """
    own = vars(base.pipe)  # setting an attribute would change the pipeline's config as well
    scheduler = own["scheduler"]
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        raise TrainingError(
            f"authors_trainer is true, and the scheduler of this {type(base.pipe).__name__} is a "
            f"{type(scheduler).__name__}: the authors' sampler and its noise levels need a "
            "FlowMatchEulerDiscreteScheduler. Set authors_trainer: false; objective: paper has their loss without it"
        )
    own["scheduler"] = solver = SecondOrder.from_config(scheduler.config)
    try:
        yield solver
    finally:
        own["scheduler"] = scheduler


class _Begun(Exception):
    """A call of the pipeline has come to its first forward."""


def sampler_levels(base: TrainBase, one: Conditions) -> Tensor:
    """The noise levels at which the pipeline's call runs the model, the highest first, (steps,).

    Args:
        base: the base model.
        one: conditions of one prompt.

    Raises:
        TrainingError: as `second_order`.
    """

    def stop(*args: Any) -> None:
        raise _Begun

    handle = base.denoiser.register_forward_pre_hook(stop, prepend=True)
    try:
        with second_order(base) as solver:
            # The call sets its scheduler up, and ends before it costs anything.
            empty = one if base.has_cfg and base.guidance_scale > 1 else None
            base.sample_batch(one, torch.zeros(base.latent_shape(1)), empty)
    except _Begun:
        return solver.sigmas[:-1].float().cpu()
    finally:
        handle.remove()
    raise AssertionError("the pipeline's call ran no forward")
