"""Inside real ComfyUI checkouts: COMFYUI_PATH names them (several with the system's path separator between), and
COMFYUI_PYTHON the interpreter that has what they need; without it, this one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from helpers.repository import ROOT
from nft_pipeline.adapters.single_file import read_single_file

CHECKOUTS = [Path(path) for path in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if path]
pytestmark = pytest.mark.skipif(not CHECKOUTS, reason="COMFYUI_PATH does not name a checkout of ComfyUI")
DRIVER = ROOT / "tests" / "helpers" / "comfyui_driver.py"

if CHECKOUTS:
    from helpers.comfyui_jobs import CFGS, EMOJI, PARITY, WRONG, write_files
else:
    CFGS, EMOJI, PARITY, WRONG = (), {}, {}, {}  # type: ignore[assignment]


@dataclass
class Outcome:
    latents: dict[str, Tensor]
    reference: dict[str, Tensor]
    report: dict[str, Any]

    def note(self, job: str) -> str:
        return "\n".join(self.report["jobs"][job]["notes"])

    def error(self, job: str) -> Any:
        return self.report["jobs"][job]["error"]

    def gap(self, one: str, other: str) -> float:
        return (self.latents[one] - self.latents[other]).abs().max().item()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """The folder of files and jobs, and the pipeline's latents."""
    folder = tmp_path_factory.mktemp("comfyui") / "given"
    return folder, write_files(folder)


@pytest.fixture(scope="module", params=CHECKOUTS or [None], ids=lambda path: "none" if path is None else path.name)
def outcome(request: pytest.FixtureRequest, prepared: tuple[Path, dict[str, Tensor]]) -> Outcome:
    """Every job, done in one process of ComfyUI."""
    given, reference = prepared
    folder = given.parent / request.param.name
    shutil.copytree(given, folder)
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, str(DRIVER), str(request.param), str(ROOT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    report = json.loads((folder / "report.json").read_text())
    unexpected = {
        name: job["error"]
        for name, job in report["jobs"].items()
        if job["error"] and not name.startswith("wrong ") and name != "interrupted"
    }
    assert not unexpected
    return Outcome(load_file(folder / "latents.safetensors"), reference, report)


def test_everything_the_contract_names_is_there(outcome: Outcome) -> None:
    assert outcome.report["contract"] == []


def test_all_nodes_load_and_every_input_and_output_is_explained(outcome: Outcome) -> None:
    assert len(outcome.report["nodes"]) == 14
    assert outcome.report["undocumented"] == []


def test_the_nodes_bring_no_large_library(outcome: Outcome) -> None:
    assert not {"diffusers", "transformers", "peft", "accelerate"} & set(outcome.report["brought"])


def test_strength_0_is_no_node_bit_for_bit(outcome: Outcome) -> None:
    assert torch.equal(outcome.latents["off"], outcome.latents["base"])
    assert torch.equal(outcome.latents["heun off"], outcome.latents["heun"])
    assert outcome.gap("heun guided", "heun") > 0.1


def test_a_policy_at_strength_1_is_the_lora_loader(outcome: Outcome) -> None:
    assert outcome.gap("policy 1", "merged") < 1e-5
    assert outcome.gap("base", "merged") > 0.1


def test_chained_strengths_add_up(outcome: Outcome) -> None:
    assert outcome.gap("chained", "policy 1") < 1e-5
    assert outcome.gap("chained on a loaded one", "policy 1.5") < 1e-5


def test_nothing_leaks_into_later_runs(outcome: Outcome) -> None:
    for later in ("base after", "base after an interrupt", "base at the end", "parity base 1.0"):
        assert torch.equal(outcome.latents[later], outcome.latents["base"]), later
    assert torch.equal(outcome.latents["merged after"], outcome.latents["merged"])


def test_no_forward_stays_replaced_after_any_job(outcome: Outcome) -> None:
    left = {name: job for name, job in outcome.report["jobs"].items() if job["replaced_forwards"] or job["patched"]}
    assert left == {}


def test_a_cached_model_gives_the_same_again(outcome: Outcome) -> None:
    assert torch.equal(outcome.latents["policy 1 again"], outcome.latents["policy 1"])
    assert torch.equal(outcome.latents["positive again"], outcome.latents["positive"])


def test_comfyui_counts_what_an_adapter_takes_on_the_device(outcome: Outcome, prepared: Any) -> None:
    jobs = outcome.report["jobs"]
    assert jobs["base"]["counted"] == jobs["off"]["counted"] == 0
    adapter = read_single_file(prepared[0] / "loras" / "policy.safetensors")
    assert adapter is not None
    assert jobs["policy 1"]["counted"] >= sum(4 * tensor.numel() for tensor in adapter.lora.values())


def test_a_style_lora_may_stand_before_or_after(outcome: Outcome) -> None:
    assert torch.equal(outcome.latents["style before"], outcome.latents["style after"])
    assert outcome.gap("style before", "both merged") < 1e-5
    assert outcome.gap("style before", "policy 1") > 0.01


def test_other_peoples_loras_are_policies(outcome: Outcome) -> None:
    assert outcome.gap("plain", "policy 1") < 1e-5
    assert outcome.gap("kohya", "policy 1") < 1e-5
    assert "WARNING: no scale is recorded" in outcome.note("plain")
    assert re.search(r"\b(\d+) of \1 LoRA layers active on a SD3 model", outcome.note("kohya"))


def test_where_guidance_is_off_it_is_off(outcome: Outcome) -> None:
    assert torch.equal(outcome.latents["no schedule"], outcome.latents["base"])
    for half in ("first half", "second half"):
        assert outcome.gap(half, "base") > 1e-3
        assert outcome.gap(half, "positive") > 1e-3


def test_several_prompts_at_once_are_guided(outcome: Outcome) -> None:
    assert outcome.gap("two prompts", "two prompts, base") > 0.01


def test_an_adapter_that_a_lora_loader_has_loaded_too_is_warned_of(outcome: Outcome) -> None:
    assert "WARNING: a LoRA loader or a hook has put this adapter's LoRA" in outcome.note("twice")
    assert "LoRA loader" not in outcome.note("policy 1")


def test_compiled_models_are_guided_and_not_guided_as_asked(outcome: Outcome) -> None:
    assert outcome.gap("compiled base", "base") < 1e-5
    assert outcome.gap("compiled positive", "positive") < 1e-5
    assert outcome.gap("compiled base after", "base") < 1e-5


@pytest.mark.parametrize("cfg", CFGS)
@pytest.mark.parametrize("name", [*PARITY, *EMOJI])
def test_latents_are_those_of_the_pipeline(outcome: Outcome, name: str, cfg: float) -> None:
    job, base = f"parity {name} {cfg}", f"parity emoji base {cfg}" if name in EMOJI else f"parity base {cfg}"
    gap = (outcome.latents[job] - outcome.reference[job]).abs().max().item()
    effect = (outcome.reference[job] - outcome.reference[base]).abs().max().item()
    print(f"{job}: latents differ by {gap:.1e}, guidance moves them by {effect:.2f}")
    assert gap < 1e-4
    assert effect > 0.1


@pytest.mark.parametrize("cfg", CFGS)
def test_early_choice_keeps_the_noise_that_the_pipelines_alpha_likes_best(outcome: Outcome, cfg: float) -> None:
    job = f"early choice {cfg}"
    assert (outcome.latents[job] - outcome.reference[job]).abs().max() < 1e-4
    assert (outcome.reference[job] - outcome.reference[f"parity base {cfg}"]).abs().max() > 0.1
    assert torch.equal(outcome.latents["positive, one candidate"], outcome.latents["positive"])


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_an_error_a_person_understands(outcome: Outcome, name: str) -> None:
    error = outcome.error(f"wrong {name}")
    assert error is not None and WRONG[name][1] in error, error
