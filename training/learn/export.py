"""Makes the adapter that is written (config, LoRA, alpha head) of a finished learner, and begins a learner from one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nft_pipeline.adapter import Adapter, AdapterConfig, BaseModel
from nft_pipeline.adapters.base_check import check_base
from nft_pipeline.dial.measured import Dial
from nft_pipeline.dial.promise import tilt_at_weight
from nft_pipeline.files.private import without_secrets
from nft_pipeline.guidance import beta_from_tilt

from ..data.optimality import at_of
from ..errors import TrainingError
from ..settings.public import public_settings
from .calibration import Calibration
from .learner import Learner
from .maths import accumulated_tilt
from .old_model import Tilt

_NORMALISERS = {
    "raw": "none, already in [0, 1]",
    "likes": "likes, 0 or 1",
    "threshold": "1 from {at:g} on, else 0",
    "sigmoid": "sigmoid of standard deviations from the mean",
    "rank": "rank within the group",
    "top": "1 for the best {at:g} of each prompt's pictures, else 0",
    "exponential": "e^({at:g} (score - 1))",
    "group": "1/2 + clip((score - mean of the prompt) / (std + 1e-4), -5, 5) / 10",
}
LEAST_TILT = 1e-3  # for an adapter that has not learned anything yet, whose tilt is 0
MAX_PATH = 4096


@dataclass(frozen=True)
class Shift:
    """How far strength 1 moved the log-odds of held-out pictures, with its standard error, and the pictures' number."""

    log_odds: float
    error: float
    n: int

    @property
    def is_sure(self) -> bool:
        """Whether it is above 0 by two standard errors, so that a tilt can be told from it."""
        return self.log_odds - 2 * self.error > LEAST_TILT


def adapter_tilt(learner: Learner, shift: Shift | None = None) -> float:
    """The tilt at strength 1: of a policy what was measured, if it is sure; else what it is meant to be."""
    if learner.config.kind != "positive" and shift is not None and shift.is_sure:
        return shift.log_odds
    return nominal_tilt(learner)


def tilt_words(learner: Learner, shift: Shift | None) -> str:
    """Which tilt a policy is stored with, and where it is from, for the run's log."""
    nominal = nominal_tilt(learner)
    if shift is None:
        return f"tilt at strength 1: {nominal:.3g}, as the settings add up to; no sweep has measured it"
    measured = f"{shift.log_odds:.3g} ± {shift.error:.2g} in log-odds on {shift.n} held-out pictures"
    if not shift.is_sure:
        return f"tilt at strength 1: {nominal:.3g}, as the settings add up to; measured {measured}, which is not sure"
    return f"tilt at strength 1: measured {measured}; the settings add up to {nominal:.3g}"


def nominal_tilt(learner: Learner) -> float:
    """The tilt of the settings. For a policy it is what its rounds add up to if all converge (M8); an offline run is
    one round."""
    config = learner.config
    if config.kind == "positive":
        return config.tilt
    return learner.tilt.theta if config.online else accumulated_tilt(config.tilt, 1, config.eta0)


def adapter_config(
    learner: Learner,
    base_identity: BaseModel,
    rate: float,
    pictures: int,
    calibration: Sequence[Calibration] = (),
    strength: float = 1.0,
    shift: Shift | None = None,
    dial: Dial | None = None,
) -> AdapterConfig:
    """What the adapter says about itself; arguments as `make_adapter`."""
    config = learner.config
    at = at_of(config.optimality, config.optimality_at)
    family, positive = learner.base.family, config.kind == "positive"
    tilt = max(adapter_tilt(learner, shift), LEAST_TILT)
    if dial is not None and not positive:
        tilt = max(tilt_at_weight(dial.own, 1.0), LEAST_TILT)
    source = "sampled in rounds" if config.online else config.data or "sampled from the base model"
    summary: dict[str, Any] = {
        "objective": config.kind,
        "pool": {"size": pictures, "mean_reward": round(rate, 4), "source": source},
        "pairs": learner.step_number * config.batch,
        "settings": public_settings(config.to_dict()),
        "alpha_held_out": [
            {
                "noise_level": c.noise_level,
                "auc": None if c.auc != c.auc else round(c.auc, 4),
                "error": round(c.error, 4),
                "n": c.n,
            }
            for c in calibration
        ],
    }
    if not positive:
        summary["nominal_tilt"] = nominal_tilt(learner)
        summary["measured_shift"] = None if shift is None else asdict(shift)
    return AdapterConfig(
        kind="positive" if positive else "policy",
        name=config.name,
        beta=beta_from_tilt(tilt),
        tilt=tilt,
        base_model=base_identity,
        component=family.component,
        denoiser=family.denoiser,
        prediction=learner.base.prediction,
        rank=config.rank,
        reward={
            "name": config.reward_name,
            "description": without_secrets(config.reward_description),
            "normaliser": _NORMALISERS[config.optimality].format(at=at),
        },
        base_rate=min(max(rate, 1e-4), 1 - 1e-4) if positive else None,
        guidance_scale=learner.base.stock_guidance_scale,
        resolution=learner.base.resolution,
        training=without_paths(summary),
        licence=config.licence,
        strength=strength,
        dial=dial,
    )


def make_adapter(
    learner: Learner,
    base_identity: BaseModel,
    rate: float,
    pictures: int,
    calibration: Sequence[Calibration] = (),
    strength: float = 1.0,
    shift: Shift | None = None,
    dial: Dial | None = None,
) -> Adapter:
    """The adapter made of the learner's present weights.

    Args:
        learner: with its running averages in place.
        base_identity: what it was trained on.
        rate: the mean of r over the pictures.
        pictures: how many pictures it was trained on.
        calibration: how well the head does on held-out pictures.
        strength: the strength to recommend.
        shift: what the last sweep measured at strength 1; None if none did.
        dial: what a calibration found; a policy's tilt is then the one that was measured at weight 1.
    """
    config = adapter_config(learner, base_identity, rate, pictures, calibration, strength, shift, dial)
    head = None
    if config.kind == "positive" and learner.head is not None:
        head = copy.deepcopy(learner.head).cpu()  # the learner may go on
    lora = {key: tensor.detach().clone() for key, tensor in learner.roles.lora().items()}
    return Adapter(config, lora, head)


def without_paths(value: Any) -> Any:
    """Settings or a summary in which each path on this machine is replaced by its name, because adapters get shared."""
    if isinstance(value, dict):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_paths(entry) for entry in value]
    if isinstance(value, str) and "\n" not in value and len(value) < MAX_PATH:
        path = Path(value).expanduser()
        if path.is_absolute() or (len(path.parts) > 1 and path.exists()):
            return path.name
    return value


def begin_from(learner: Learner, adapter: Adapter) -> None:
    """Give a learner an adapter's weights in the place of new ones.

    Raises:
        TrainingError: it is of another kind, base model, rank or layers, or its head is of other sizes.
    """
    config, name = learner.config, adapter.config.name
    kind = "positive" if config.kind == "positive" else "policy"
    if adapter.config.kind != kind:
        raise TrainingError(
            f"init_from names {name}, a {adapter.config.kind} adapter, and this run trains a {kind} one. What the "
            "two learn differs; set objective, or leave init_from out"
        )
    check_base(adapter.config, learner.base.denoiser, adapter.lora)
    learner.roles.load(adapter.lora, name)
    if learner.head is not None and adapter.head is not None:
        if learner.head.config != adapter.head.config:
            raise TrainingError(
                f"init_from names {name}, whose head is {adapter.head.config}, and this run's would be "
                f"{learner.head.config}. Set head_width, head_queries and head_layers to the same"
            )
        learner.head.load_state_dict(adapter.head.state_dict())
    learner.average = [parameter.detach().clone() for parameter in learner.parameters]
    if config.online:
        learner.tilt = Tilt(adapter.config.tilt, adapter.config.tilt)
