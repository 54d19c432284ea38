"""A family is one file. What else must follow it is said here, in a sentence."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest

from helpers.modular import IS_NEW, MODULAR
from helpers.pipelines_page import PAGE
from helpers.repository import ROOT
from helpers.zoo import CASES, denoiser_of
from nft_pipeline.families import known
from nft_pipeline.families.family import Family
from nft_pipeline.families.registry import FAMILIES, draws_videos, family_of
from nft_pipeline.files.discovery import modules_of

FILES = {module.__name__.rpartition(".")[2]: module for module in modules_of(known)}
every_file = pytest.mark.parametrize("file", FILES)
every_case = pytest.mark.parametrize("name", CASES)
# What `Family.output` calls it, by the `prediction_type` of a scheduler. FlowMatch schedulers have none.
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample", "flow_prediction": "flow", None: "flow"}
# Sana Sprint's pipeline makes what its scheduler takes out of a velocity.
PREDICTIONS["trigflow"] = "flow"
LORA_SCALES = ("joint_attention_kwargs", "attention_kwargs", "cross_attention_kwargs")


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    return {name: case.pipe() for name, case in CASES.items()}


@pytest.fixture(scope="module")
def with_a_case(pipes: dict[str, Any]) -> set[str]:
    modular = [case.pipe() for case in MODULAR.values()]
    return {family_of(denoiser_of(pipe)).denoiser for pipe in (*pipes.values(), *modular)}


@every_file
def test_a_file_is_a_family_with_a_case_and_a_row_on_the_page(file: str, with_a_case: set[str]) -> None:
    where = f"nft_pipeline/families/known/{file}.py"
    family = getattr(FILES[file], "FAMILY", None)
    assert isinstance(family, Family), f"{where} has no FAMILY = Family(...)"
    others = [name for name in FILES if name != file and FILES[name].FAMILY.denoiser == family.denoiser]
    assert not others, f"{where} and {others[0]}.py beside it are both about {family.denoiser}: merge them"
    assert FAMILIES[family.denoiser] is family
    if not IS_NEW and not hasattr(diffusers, family.denoiser):
        pytest.skip(f"diffusers {diffusers.__version__} has no {family.denoiser}, 0.42 has")
    assert hasattr(diffusers, family.denoiser), f"{where}: diffusers has no class {family.denoiser}"
    assert family.denoiser in with_a_case, (
        f"{where} has no test case: add a pipeline over {family.denoiser} to CASES in tests/helpers, in zoo_unets.py, "
        "zoo_images.py, zoo_other_images.py, zoo_videos.py or zoo_sounds.py, or a modular one in modular.py"
    )
    pages = [page.read_text(encoding="utf-8") for page in (PAGE, ROOT / "docs" / "modular.md")]
    assert any(f"| {family.denoiser} |" in page for page in pages), (
        f"docs/pipelines.md has no row for {family.denoiser} of {where}; write it again: make pages"
    )


@every_file
def test_what_a_family_names_is_there(file: str) -> None:
    family = FILES[file].FAMILY
    pipeline = family.layer_names.pipeline
    assert pipeline is None or hasattr(getattr(diffusers, pipeline), "lora_state_dict")
    for template in family.workflows.values():
        assert (ROOT / "example_workflows" / f"{template}.json").is_file()


@every_case
def test_a_family_predicts_what_the_scheduler_of_its_case_takes(name: str, pipes: dict[str, Any]) -> None:
    scheduler = pipes[name].scheduler
    family = family_of(denoiser_of(pipes[name]))
    said = scheduler.config.get("prediction_type")
    assert said is not None or type(scheduler).__name__.startswith("FlowMatch")
    assert family.output(scheduler) == PREDICTIONS[said], (
        f"the family of {family.denoiser} has prediction={family.prediction!r}, and the case {name} has a "
        f"{type(scheduler).__name__} of prediction_type {said!r}: set prediction={PREDICTIONS[said]!r}, or give the "
        "case the scheduler that its checkpoints have"
    )


@every_case
def test_a_family_names_arguments_that_its_denoiser_has(name: str, pipes: dict[str, Any]) -> None:
    denoiser = denoiser_of(pipes[name])
    family = family_of(denoiser)
    arguments = list(inspect.signature(type(denoiser).forward).parameters)
    shown = f"the forward of {family.denoiser} has {', '.join(arguments[1:])}"
    assert family.state in arguments, f"state={family.state!r}, and {shown}"
    texts = [argument for argument in arguments if argument.startswith(("encoder_hidden_states", "cap_feats"))]
    assert family.text in (texts or [None, *arguments]), f"text={family.text!r}, and {shown}"
    scales = [argument for argument in arguments if argument in LORA_SCALES]
    if IS_NEW or scales:  # Z-Image's came with diffusers 0.42
        assert family.lora_scale in (scales or [""]), f"lora_scale={family.lora_scale!r}, and {shown}"


def test_every_family_of_the_registry_has_a_file() -> None:
    assert set(FAMILIES) == {module.FAMILY.denoiser for module in FILES.values()}


def test_a_denoiser_without_a_file_draws_videos_if_its_name_says_so() -> None:
    assert draws_videos("AllegroTransformer3DModel") and draws_videos("LTX2VideoDiffusionDecoderModel")
    assert not draws_videos("StableAudioDiTModel") and not draws_videos("CosmosTransformer3DModel")


def test_a_room_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = tmp_path / "made_up_room"
    (room / "inner").mkdir(parents=True)
    for name in ("__init__", "b", "a", "inner/__init__"):
        (room / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = modules_of(importlib.import_module("made_up_room"))
    assert [module.__name__ for module in modules] == ["made_up_room.a", "made_up_room.b"]
    for name in [name for name in sys.modules if name.startswith("made_up_room")]:
        monkeypatch.delitem(sys.modules, name)
