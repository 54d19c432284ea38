"""The noise level t = sigma in [0, 1] that a denoiser is called at, read from its timestep.

Pipelines pass one number for it in many ways: 1000 t, t, 1 - t, an index into a table of the scheduler. A reader takes
the call's arguments by name and the scheduler and returns t, one per row, shape (rows,), fp32. Where each token of a
video has a timestep of its own, (rows, L), a row's noise level is that of its noisiest token, because the less noisy
tokens belong to frames that are given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import FamilyError
from .forward_call import Inputs

Reader = Callable[[Inputs, Any], Tensor]


def _first(state: Any) -> Tensor:
    return state if isinstance(state, Tensor) else state[0]


def raw_timestep(inputs: Inputs, state: str, timestep: str) -> Tensor:
    """The timestep as (rows,) fp32, whether it was passed once per row, once for all, or once per token."""
    x = inputs[state]
    value = torch.as_tensor(inputs[timestep], device=_first(x).device).float()
    if value.ndim > 1:
        value = value.flatten(1).amax(1)
    return value.expand(len(x))


def flow(scale: float = 1.0, *, state: str = "hidden_states", timestep: str = "timestep") -> Reader:
    """timestep = scale t: 1000 where the pipeline hands on the scheduler's timestep, 1 where it divides by 1000."""
    return lambda inputs, scheduler: raw_timestep(inputs, state, timestep) / scale


def reversed_flow(scale: float = 1.0, *, state: str = "hidden_states", timestep: str = "timestep") -> Reader:
    """timestep = scale (1 - t): of models whose time runs from noise to picture."""
    return lambda inputs, scheduler: 1 - raw_timestep(inputs, state, timestep) / scale


def scheduled_flow(inputs: Inputs, scheduler: Any) -> Tensor:
    """timestep is a label of the scheduler's, whose sigma there is t: the pipeline gives the scheduler both, and only
    sigmas are shifted to the picture's size."""
    timestep = raw_timestep(inputs, "hidden_states", "timestep")
    labels = torch.as_tensor(scheduler.timesteps, device=timestep.device).float()
    nearest = (labels[None] - timestep[:, None]).abs().argmin(1)
    return torch.as_tensor(scheduler.sigmas, device=timestep.device).float()[nearest]


def scheduled_edm(inputs: Inputs, scheduler: Any) -> Tensor:
    """timestep is a label of an EDM scheduler's, with a sigma for x_0 + sigma eps: t is sigma / (1 + sigma)."""
    sigma = scheduled_flow(inputs, scheduler)
    return sigma / (1 + sigma)


def sana(inputs: Inputs, scheduler: Any) -> Tensor:
    """timestep = 1000 t times timestep_scale (of the model's config); t itself under Sana Sprint's SCM scheduler."""
    value = raw_timestep(inputs, "hidden_states", "timestep")
    if type(scheduler).__name__ == "SCMScheduler":
        return value.clamp(max=1.0)  # its first angle is rounded to just above pi / 2
    return value / (1000 * inputs["self"].config.timestep_scale)


def log_sigmas(alphas_cumprod: Tensor) -> Tensor:
    """log sigma of each index into a scheduler's table, sigma = sqrt((1 - a) / a); t = sigma / (1 + sigma) is its
    logistic function. A schedule that ends in pure noise has a = 0 there, sigma infinite; 20 is t = 1 in fp32."""
    return (0.5 * torch.log((1 - alphas_cumprod) / alphas_cumprod)).clamp(max=20.0)


def variance_preserving(*, state: str = "hidden_states", timestep: str = "timestep") -> Reader:
    """timestep is an index, whole or fractional, into the scheduler's alphas_cumprod.

    x = sqrt(a) x_0 + sqrt(1 - a) eps is a multiple of (1 - t) x_0 + t eps for t = sigma / (1 + sigma), with
    sigma = sqrt((1 - a) / a). Between two indices log sigma is linear, as Euler schedulers have it. Two settings of a
    scheduler make the timestep something else: 1000 t with use_flow_sigmas, log(sigma) / 4 where it is continuous.
    """

    def noise_level(inputs: Inputs, scheduler: Any) -> Tensor:
        config = getattr(scheduler, "config", {})
        if config.get("use_flow_sigmas"):
            return raw_timestep(inputs, state, timestep) / config["num_train_timesteps"]
        if config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction":
            return torch.sigmoid(4 * raw_timestep(inputs, state, timestep))
        a = getattr(scheduler, "alphas_cumprod", None)
        if a is None:
            raise FamilyError(
                f"cannot tell the noise level of a timestep: the scheduler is a {type(scheduler).__name__}, expected "
                "one with alphas_cumprod, such as DDIMScheduler or EulerDiscreteScheduler. Set pipe.scheduler to one."
            )
        index = raw_timestep(inputs, state, timestep)
        log_sigma = log_sigmas(a).to(index.device, torch.float32)
        index = index.clamp(0, len(log_sigma) - 1)
        below = index.floor().long()
        above = (below + 1).clamp(max=len(log_sigma) - 1)
        return torch.sigmoid(torch.lerp(log_sigma[below], log_sigma[above], index - below))

    return noise_level


def by_scheduler(*, state: str, timestep: str) -> Reader:
    """For models without a family: the noise level as the scheduler implies it.

    With flow sigmas, or sigmas and no alphas_cumprod, timestep is 1000 t, t, 1 - t or 1000 (1 - t), whichever is the
    scheduler's own t of the step; where it is none of them, 1000 t, or t where the timestep is 1 or below. With
    alphas_cumprod it is an index into it. Sigmas above 1 are no flow's but those of x_0 + sigma eps: see `_of_sigmas`.
    """
    read_index = variance_preserving(state=state, timestep=timestep)

    def noise_level(inputs: Inputs, scheduler: Any) -> Tensor:
        config = getattr(scheduler, "config", {})
        is_flow = hasattr(scheduler, "sigmas") and not hasattr(scheduler, "alphas_cumprod")
        if not (is_flow or config.get("use_flow_sigmas")):
            return read_index(inputs, scheduler)
        value = raw_timestep(inputs, state, timestep)
        if float(torch.as_tensor(scheduler.sigmas).max()) > 1.001:
            return _of_sigmas(value, scheduler)
        whole = config.get("num_train_timesteps", 1000)
        forms = torch.stack([value / whole, value, 1 - value, 1 - value / whole])
        distance = (forms - _level_of_step(scheduler, whole)).abs().amax(1)
        likeliest = torch.where(value > 1, value / whole, value)
        return torch.where(distance.amin() < 0.01, forms[distance.argmin()], likeliest)

    return noise_level


def _of_sigmas(value: Tensor, scheduler: Any) -> Tensor:
    """t = sigma / (1 + sigma) for a timestep that is a label of the scheduler's, which has a sigma for each, or sigma
    itself, whichever is nearer."""
    tables = (scheduler.timesteps, scheduler.sigmas)
    labels, sigmas = (torch.as_tensor(table, device=value.device).float() for table in tables)
    from_label, from_sigma = ((value[:, None] - each[None]).abs() for each in (labels, sigmas))
    is_label = from_label.amin(1) <= from_sigma.amin(1)
    if torch.minimum(from_label.amin(1), from_sigma.amin(1)).max() > 1e-3 * value.abs().max().clamp(min=1.0):
        raise FamilyError(
            f"cannot tell the noise level of timestep {value[0].item():g}: it is neither a timestep nor a sigma of the "
            f"{type(scheduler).__name__}. Set pipe.scheduler to one with alphas_cumprod, such as DDIMScheduler."
        )
    sigma = torch.where(is_label, sigmas[from_label.argmin(1)], value)
    return sigma / (1 + sigma)


def _level_of_step(scheduler: Any, whole: int) -> float:
    """t of the step that a flow scheduler is at; NaN for one that does not count its steps."""
    labels = getattr(scheduler, "timesteps", None)
    index = getattr(scheduler, "step_index", None)
    if index is None:
        index = getattr(scheduler, "begin_index", None) or 0
    if labels is None or not hasattr(scheduler, "step_index") or index >= len(labels):
        return math.nan
    return float(labels[index]) / whole
