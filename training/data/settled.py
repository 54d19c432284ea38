"""What a folder of pictures settles about a run: how many steps it is worth, and whether the base model made it."""

from __future__ import annotations

import math
from dataclasses import replace

from ..settings.config import TrainConfig
from .folder import DataError, Folder, read_folder

LEAST_STEPS = 64  # however few pictures there are: as few did as well as 256 with 200 and with 600 ratings


def settled(config: TrainConfig) -> TrainConfig:
    """The settings with what the folder decides in their place; without a folder, or a sound one, as they are.

    Pictures that all name the run's base model as their `model` were made by it. `passes` bounds the steps.
    """
    if config.data is None or config.online:
        return config
    try:
        folder = read_folder(config.data)
    except DataError:
        return config  # which the run says where it reads them
    made_by_base = config.made_by_base or was_made_by(folder, config)
    steps = config.steps
    if config.passes is not None:
        steps = min(steps, max(LEAST_STEPS, math.ceil(config.passes * len(folder.pictures) / config.batch)))
    return replace(config, made_by_base=made_by_base, steps=steps)


def was_made_by(folder: Folder, config: TrainConfig) -> bool:
    """Whether every line of a folder says that the run's base model drew its picture."""
    names = {config.base_model, config.base_id} - {None}
    return bool(folder.pictures) and all(picture.model in names for picture in folder.pictures)


def longer(config: TrainConfig, more: int) -> TrainConfig:
    """The settings of a run of so many more rounds, or steps of an offline run."""
    if not more:
        return config
    return replace(config, rounds=config.rounds + more) if config.online else replace(config, steps=config.steps + more)
