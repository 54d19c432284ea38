"""Two processes, as accelerate launch or torchrun start them, train what one does with the same batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers import gloo_trainer
from helpers.tiny_run import SMALL, save_tiny

# An odd batch, so that the two have shares of different sizes, and small ones at a time.
SETTINGS = {"positive": {}, "policy": {"objective": "policy", "micro_batch": 2}}


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    model = save_tiny(tmp_path / "model")
    script = Path(gloo_trainer.__file__)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])}
    for kind, more in SETTINGS.items():
        path = tmp_path / f"{kind}.yaml"
        path.write_text(yaml.safe_dump({**SMALL, **more, "batch": 9, "head_batch": 7, "base_model": model}))
        found = []
        for count in (1, 2):
            out = tmp_path / f"{kind}-{count}"
            launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(count), "--num_machines", "1"]
            launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
            launch = [*launch, "--multi_gpu"][:-1] if count == 1 else launch
            run = subprocess.run(
                [sys.executable, *launch, str(script), str(path), str(out)],
                capture_output=True,
                text=True,
                timeout=240,
                env=env,
            )
            assert run.returncode == 0, run.stdout + run.stderr
            assert run.stdout.count("adapter written to") == 1
            found.append(load_file(out / "adapter" / "pytorch_lora_weights.safetensors"))
        assert found[0].keys() == found[1].keys()
        for key, value in found[0].items():
            torch.testing.assert_close(found[1][key], value, rtol=1e-3, atol=2e-4)
        moved = [value.abs().max() for key, value in found[0].items() if "lora_B" in key]
        assert max(moved) > 1e-3
