"""How many pictures a run's calibration may draw: by default a tenth of the forwards that the run itself spends."""

from __future__ import annotations

from ..settings.config import TrainConfig

SHARE = 0.1
MOST = 4800  # more hardly makes the promise better (docs/measured/dial_budget.md)
BACKWARD = 2  # a backward costs about two forwards


def forwards_of(config: TrainConfig) -> int:
    """The denoiser's forwards of a run, of one sample each; a backward counts as two.

    With classifier-free guidance a step of the sampler is two forwards.
    """
    step = (2 if config.guidance_scale > 1 else 1) * config.pool_steps
    passes = 1 + BACKWARD
    if config.kind != "positive":
        passes += 1 + (1 if config.eta0 is not None and config.online else 0)
    learning = config.total_steps * config.batch * passes
    if config.kind == "positive":
        learning += config.total_steps * config.head_batch
    if config.online:
        return learning + config.rounds * config.round_prompts * config.group_size * step
    if config.data is not None:
        return learning
    return learning + (config.pool_size + (config.held_out_size if config.kind == "positive" else 0)) * step


def calibration_pictures(config: TrainConfig) -> int:
    """How many pictures to draw: what the settings say, or as many as a tenth of the run's forwards are."""
    if config.calibration_pictures is not None:
        return config.calibration_pictures
    step = (2 if config.guidance_scale > 1 else 1) * config.pool_steps
    return min(MOST, int(SHARE * forwards_of(config) / step))
