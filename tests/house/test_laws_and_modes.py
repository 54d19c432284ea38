"""A law is one entry of one table, a mode one row and one module: all that offers them follows, the page included."""

from __future__ import annotations

import argparse
import importlib
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import nft_pipeline.commands.sample as sample_command
import nft_pipeline.hub_cards.commands.export as export_command
import nft_pipeline.training.demo.eval_command as evaluate_command
from helpers.adapters import config_values
from helpers.laws_page import PAGE, page
from helpers.tiny import sample, tiny_adapter, tiny_pipe
from nft_pipeline import DiffusionNFTPipeline
from nft_pipeline.adapter import AdapterConfig
from nft_pipeline.errors import GuidanceError
from nft_pipeline.guidance import law_scale
from nft_pipeline.laws import COMBINATIONS, LAWS, Law
from nft_pipeline.modes import MODES
from nft_pipeline.settings import GuidanceSettings


@pytest.fixture
def root_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third law for positive adapters, by its entry alone."""
    law = Law(lambda alpha, tilt: tilt * alpha.sqrt(), formula="s = tilt sqrt(alpha)", help="only in this test")
    monkeypatch.setitem(LAWS, "root", law)


def config(kind: str) -> AdapterConfig:
    return AdapterConfig.from_dict(config_values(kind=kind, name="mine"))


def choices(add_arguments: Callable[[argparse.ArgumentParser], None], option: str) -> tuple[list[str], str]:
    """What an option of a command offers, and its help."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    (action,) = [action for action in parser._actions if option in action.option_strings]
    assert action.choices is not None and action.help is not None
    return list(action.choices), action.help


@pytest.mark.parametrize(
    "command", [sample_command, export_command, evaluate_command], ids=lambda module: module.__name__
)
def test_a_third_law_is_offered_by_every_command(root_law: None, command: Any) -> None:
    names, words = choices(command.add_arguments, "--law")
    assert names == [*LAWS] and "root" in names and "root: only in this test" in words


def test_a_third_law_guides_a_pipeline(root_law: None) -> None:
    assert law_scale(0.25, 2.0, "root").item() == 1.0
    pipe = tiny_pipe()
    guided = DiffusionNFTPipeline.from_pipe(pipe, tiny_adapter(pipe.transformer, alpha=0.25))
    sample(guided, nft_law="root")
    torch.testing.assert_close(guided.nft_stats.scale, torch.full((3, 1), 2.0 * 0.5))


def test_a_third_law_is_refused_for_the_kinds_it_does_not_take(root_law: None) -> None:
    assert GuidanceSettings.of_call([config("positive")], law="root").law == "root"
    with pytest.raises(GuidanceError, match=r'nft_law="root" needs a positive adapter.*Use nft_law="nft"\.'):
        GuidanceSettings.of_call([config("policy")], law="root")


@pytest.mark.parametrize("wrong", ["ods", "clip", ""])
def test_an_unknown_law_raises_everywhere(wrong: str) -> None:
    with pytest.raises(ValueError, match="unknown law"):
        law_scale(0.5, 1.0, wrong)
    with pytest.raises(GuidanceError, match="expected one of " + ", ".join(map(repr, LAWS))):
        GuidanceSettings.of_call([config("positive")], law=wrong)
    with pytest.raises(GuidanceError, match="expected one of " + ", ".join(map(repr, LAWS))):
        GuidanceSettings.of_call([config("policy")], law=wrong)


def test_the_modes_are_those_of_the_table() -> None:
    assert choices(sample_command.add_arguments, "--mode")[0] == list(MODES)
    assert all(name in choices(sample_command.add_arguments, "--mode")[1] for name in MODES)


def test_the_combinations_are_those_of_the_table() -> None:
    names, words = choices(sample_command.add_arguments, "--combine")
    assert names == list(COMBINATIONS) and all(combination.help in words for combination in COMBINATIONS.values())


@pytest.mark.parametrize("name", ["off", "on", *MODES])
def test_every_mode_has_the_same_two_functions(name: str) -> None:
    module = importlib.import_module(f"nft_pipeline.engine.modes.{name}")
    assert list(inspect.signature(module.before).parameters) == ["work", "call"]
    assert list(inspect.signature(module.after).parameters) == ["work", "call", "output"]
    assert module.before.__doc__ and module.after.__doc__


def test_the_calls_own_help_and_the_page_list_them() -> None:
    documentation = type(DiffusionNFTPipeline.from_pipe(tiny_pipe())).__call__.__doc__ or ""
    for name, law in LAWS.items():
        assert f'"{name}": {law.formula}' in documentation
    for name, mode in MODES.items():
        assert f'"{name}": {mode.help}' in documentation
    for name, combination in COMBINATIONS.items():
        assert f'"{name}": {combination.help}' in documentation
    assert page() == PAGE.read_text(encoding="utf-8"), "docs/api.md is stale: run make pages"


def test_the_nodes_have_the_modes_that_their_guide_knows() -> None:
    offered = {name for name, mode in MODES.items() if mode.node}
    assert offered == {"two_pass", "single"}, (
        "comfy_nodes/passes.py spends one pass or two; write the new mode there first"
    )


@pytest.mark.parametrize("name", LAWS)
def test_every_law_explains_itself_and_never_gives_a_scale_that_is_no_number(name: str) -> None:
    law = LAWS[name]
    assert len(law.help) > 20 and "=" in law.formula and "positive" in law.kinds, f"{name}: say in words what it does"
    assert law_scale(0.3, 0.0, name).item() == 0.0
    for tilt in (math.nan, math.inf, -math.inf):
        try:
            scale = law_scale(0.3, tilt, name)
        except ValueError:
            continue  # a tilt without a scale is an error with a sentence
        assert bool(scale.isfinite().all()), f"{name} gives {scale} at tilt {tilt}: give its limit or raise ValueError"
