"""Two processes train what one does with the same batch."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

import nft_pipeline.training
from helpers import split_families, two_processes
from helpers.tiny_run import SMALL, save_tiny
from helpers.whole import CALLS
from nft_pipeline.training.base_model import TrainingError
from nft_pipeline.training.check import check
from nft_pipeline.training.config import TrainConfig
from nft_pipeline.training.trainer import train

LORA = "pytorch_lora_weights.safetensors"
FSDP_FILE = Path(nft_pipeline.training.__path__[0]) / "launch" / "fsdp.yaml"
TESTS = Path(two_processes.__file__).parents[1]


def helper(module):
    """What a helper of two processes prints."""
    run = subprocess.run(
        [sys.executable, module.__file__],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes, which this system cannot")
def test_two_processes_are_one():
    found = helper(two_processes)
    assert set(found) == set(two_processes.KINDS)
    for kind, values in found.items():
        assert values["moved"] > 1e-3, kind
        assert values["apart"] < 0.02 * values["moved"], kind
        assert values["resumed"] and values["shown"], kind
        assert values["share"] == pytest.approx(0.5 if kind.startswith(two_processes.FSDP) else 1, abs=0.01), kind


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes, which this system cannot")
def test_every_familys_denoiser_is_split_and_computes_the_same():
    run = helper(split_families)
    assert set(run) == {*split_families.SAMPLED, *CALLS}
    for name, values in run.items():
        assert values["share"] == pytest.approx(0.5, abs=0.02), name  # a tensor with few rows is not cut evenly
        assert values["apart"] < 1e-5, name


LAUNCHES = {"multi_gpu": ["--multi_gpu"], "fsdp.yaml": ["--config_file", str(FSDP_FILE)]}


@pytest.mark.slow
@pytest.mark.parametrize("how", LAUNCHES)
def test_the_launcher_of_accelerate_trains_what_one_process_does(how, tmp_path):
    """The commands of docs/training.md, on two CPU processes, with the settings in a file."""
    settings = {**SMALL, "base_model": save_tiny(tmp_path / "model"), "steps": 2, "batch": 10, "checkpoint_every": 0}
    run_file = tmp_path / "my_run.yaml"
    run_file.write_text(yaml.safe_dump(settings))
    train(TrainConfig.from_yaml(run_file), tmp_path / "one", say=lambda line: None, device="cpu")
    command = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCHES[how], "--num_processes", "2"]
    command += ["--main_process_port", str(two_processes.free_port()), "-m", "nft_pipeline", "train", str(run_file)]
    run = subprocess.run(
        [*command, "--out", str(tmp_path / "two"), "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(TESTS)},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("adapter written to") == 1  # one of the two speaks
    assert ("split over 2 processes" in run.stdout) == (how != "multi_gpu")
    one, two = (load_file(tmp_path / name / "adapter" / LORA) for name in ("one", "two"))
    moved = max(float(value.abs().max()) for key, value in one.items() if "lora_B" in key)
    assert one.keys() == two.keys() and moved > 1e-3
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 0.02 * moved


def faults_of(tmp_path, **settings):
    """What train raises before it loads anything, which is what check says too."""
    with pytest.raises(TrainingError) as caught:
        train(TrainConfig.from_mapping({**SMALL, **settings}), tmp_path, device="cpu")
    run_file = tmp_path / "my_run.yaml"
    run_file.write_text(yaml.safe_dump({**SMALL, **settings, "base_model": "nowhere"}))
    faults = check(run_file, None, tmp_path / "out", say=lambda line: None, device="cpu")
    assert any(str(caught.value) in fault for fault in faults)
    return str(caught.value)


def test_deepspeed_is_refused_by_name_before_anything_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert "accelerate launch --use_fsdp" in faults_of(tmp_path)


@pytest.mark.parametrize(
    ("settings", "variable", "said"),
    [
        ({"batch": 9}, "", "batch is 9 and FSDP has 2 processes, which must have equal shares.*such as 10"),
        ({"head_batch": 7}, "", "head_batch is 7 and FSDP has 2 processes"),
        ({"quantise": "nf4"}, "", "quantise is 'nf4' under FSDP"),
        ({}, "FSDP_OFFLOAD_PARAMS", "FSDP_OFFLOAD_PARAMS is set"),
    ],
)
def test_what_fsdp_cannot_split_is_said_before_anything_is_loaded(settings, variable, said, monkeypatch, tmp_path):
    for name in ("ACCELERATE_USE_FSDP", variable):
        if name:
            monkeypatch.setenv(name, "true")
    monkeypatch.setattr("nft_pipeline.training.processes.start", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert re.search(said, faults_of(tmp_path, **settings))
    monkeypatch.setenv("WORLD_SIZE", "1")  # one process has nobody to share with
    with pytest.raises(OSError, match="nowhere"):
        train(TrainConfig.from_mapping({**SMALL, **settings, "base_model": "nowhere"}), tmp_path, device="cpu")
