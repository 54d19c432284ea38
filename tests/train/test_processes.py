"""Two processes train what one does with the same batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from helpers import two_processes
from helpers.tiny_run import SMALL, save_tiny
from nft_pipeline.training.base_model import TrainingError
from nft_pipeline.training.check import check
from nft_pipeline.training.config import TrainConfig
from nft_pipeline.training.trainer import train

LORA = "pytorch_lora_weights.safetensors"
TESTS = Path(two_processes.__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes, which this system cannot")
def test_two_processes_are_one():
    script = Path(two_processes.__file__)
    run = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert set(found) == set(two_processes.KINDS)
    for kind, values in found.items():
        assert values["moved"] > 1e-3, kind
        assert values["apart"] < 0.02 * values["moved"], kind
        assert values["resumed"], kind


@pytest.mark.slow
def test_the_launcher_of_accelerate_trains_what_one_process_does(tmp_path):
    """The command of docs/training.md, on two CPU processes, with the settings in a file."""
    settings = {**SMALL, "base_model": save_tiny(tmp_path / "model"), "steps": 2, "batch": 9, "checkpoint_every": 0}
    run_file = tmp_path / "my_run.yaml"
    run_file.write_text(yaml.safe_dump(settings))
    train(TrainConfig.from_yaml(run_file), tmp_path / "one", say=lambda line: None, device="cpu")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
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
    one, two = (load_file(tmp_path / name / "adapter" / LORA) for name in ("one", "two"))
    moved = max(float(value.abs().max()) for key, value in one.items() if "lora_B" in key)
    assert one.keys() == two.keys() and moved > 1e-3
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 0.02 * moved


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_launchers_that_wrap_the_model_are_refused_by_name_before_anything_is_loaded(name, monkeypatch, tmp_path):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(TrainingError, match=f"ACCELERATE_USE_{name} is set.*accelerate launch --multi_gpu"):
        train(TrainConfig.from_mapping(SMALL), tmp_path, device="cpu")
    run_file = tmp_path / "my_run.yaml"
    run_file.write_text(yaml.safe_dump({**SMALL, "base_model": "nowhere"}))
    faults = check(run_file, None, tmp_path / "out", say=lambda line: None, device="cpu")
    assert any(fault.startswith(f"launcher: ACCELERATE_USE_{name} is set") for fault in faults)
